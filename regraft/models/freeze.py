"""Frozen means frozen: no gradient, so no update and no decay; and eval mode, so no dropout and no running statistics.

The mark is the attribute `frozen` of `core.modes`, an ordinary attribute of the module: it survives copies, pickles,
`functional_call` and wrapping, and the loop's `train_mode` obeys it.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from regraft.core.modes import set_trainable
from regraft.core.protocols import Hook
from regraft.core.run import Run
from regraft.errors import ModelError, suggest
from regraft.models.blocks import blocks, depth_of, stem_and_block_modules


def freeze(model: nn.Module, names: Iterable[str] | None = None, *, depth: int | None = None) -> None:
    """Freeze parameters or whole modules by name, or everything below block `depth`: the stem and the first `depth` blocks."""
    if (names is None) == (depth is None):
        raise ModelError("freeze takes either names or a depth; got both or neither")
    chosen = _below(model, depth) if depth is not None else _known(model, names or ())
    for name, parameter in model.named_parameters():
        if any(name == item or name.startswith(f"{item}.") for item in chosen):
            parameter.requires_grad_(False)
    set_trainable(model, None)
    for item in chosen:
        module = _module(model, item)
        if module is not None:  # also what has no parameters, as a dropout between two frozen layers
            for part in module.modules():
                part.frozen = True  # type: ignore[assignment]


def unfreeze(model: nn.Module, names: Iterable[str] | None = None) -> None:
    """Let parameters or whole modules train again, by name; all of the model without names."""
    chosen = None if names is None else _known(model, names)
    for name, parameter in model.named_parameters():
        if chosen is None or any(name == item or name.startswith(f"{item}.") for item in chosen):
            parameter.requires_grad_(True)
    for module in model.modules():
        module.frozen = False  # type: ignore[assignment]
    set_trainable(model, None)


def frozen_prefix(model: nn.Module) -> int:
    """Number of leading blocks below whose end nothing trains: 0 where the stem or the first block trains."""
    found = blocks(model)
    lowest = len(found)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = depth_of(name, model)
        if depth == 0:
            return 0
        lowest = min(lowest, depth - 1)
    return lowest


def _below(model: nn.Module, depth: int) -> set[str]:
    """Names of the modules and of the loose parameters below block `depth`."""
    if not 0 <= depth <= len(blocks(model)):
        raise ModelError(f"depth must be from 0 to {len(blocks(model))}, the number of blocks, got {depth}")
    loose = {name for name, _ in model.named_parameters() if depth_of(name, model) <= depth}
    return set(stem_and_block_modules(model, depth)) | loose


def _known(model: nn.Module, names: Iterable[str]) -> set[str]:
    """The names, each checked to be a module or a parameter of the model."""
    valid = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_modules() if name}
    chosen = {names} if isinstance(names, str) else set(names)
    for name in sorted(chosen - valid):
        raise ModelError(f"{type(model).__name__} has no module or parameter {name!r}{suggest(name, valid)}")
    return chosen


def _module(model: nn.Module, name: str) -> nn.Module | None:
    """The module of a name, or None where the name is a parameter's."""
    return dict(model.named_modules()).get(name)


class KeepStatistics(Hook):
    """Keeps batch-norm layers on their running statistics while their gains and shifts, or what was put into them, train."""

    def on_start(self, run: Run) -> None:
        """Mark them frozen, so that they stay in eval mode; gradients still pass and reach their parameters."""
        for module in run.stage.model.modules():
            if isinstance(module, _NormBase):
                module.frozen = True  # type: ignore[assignment]
