"""A model in two at the end of its longest frozen prefix: what to compute once, and what goes on training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from regraft.core.forward import inputs_of
from regraft.core.modes import eval_mode
from regraft.core.stage import trainable
from regraft.core.values import Batch
from regraft.errors import Conflict
from regraft.models.blocks import blocks, layer_groups
from regraft.models.cut import cut
from regraft.models.graft import Graft
from regraft.models.trace import trace

FEATURES = "features"


class Part(nn.Module):
    """One tensor of what a prefix computes, (N, ...), called on `inputs`; parts of one prefix share its last result."""

    def __init__(self, shared: LastResult, key: str, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.shared, self.key = shared, key
        self.inputs = inputs

    def forward(self, **inputs: Tensor) -> Tensor:
        """The tensor of this part for a batch."""
        return self.shared(inputs)[self.key]


class LastResult:
    """A function of a batch that is not run again on the inputs it was run on last."""

    def __init__(self, function: Callable[..., dict[str, Tensor]]) -> None:
        self.function = function
        self._last: tuple[Batch, dict[str, Tensor]] | None = None

    def __call__(self, inputs: Batch) -> dict[str, Tensor]:
        """The function's tensors by name."""
        if self._last is None or not _equal(self._last[0], inputs):
            self._last = (inputs, self.function(**inputs))
        return self._last[1]


def _equal(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class HeadAlone(nn.Module):
    """The head of a graft, under its own name, called on stored features (N, F)."""

    inputs = (FEATURES,)

    def __init__(self, graft: Graft) -> None:
        super().__init__()
        self.head = graft.head

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C)."""
        return self.head(features)


class Features(nn.Module):
    """What the head of a graft reads, (N, F), called on the graft's inputs."""

    def __init__(self, graft: Graft) -> None:
        super().__init__()
        self._graft = (graft,)  # in a tuple it is no child: its mode is not this module's to set
        self.inputs = graft.inputs

    def forward(self, **inputs: Tensor) -> Tensor:
        """The features, in eval mode."""
        (graft,) = self._graft
        with eval_mode(graft):
            return graft.features(**inputs)


@dataclass(frozen=True, kw_only=True)
class Split:
    """A model in two: the suffix on what the parts compute is the model, and it holds the very parameters that train."""

    suffix: nn.Module
    reads: str  # the input whose examples the stored values belong to
    parts: Mapping[str, nn.Module]  # key the suffix takes -> what computes it
    frozen: tuple[Tensor, ...]  # what the stored values depend on


def split(model: nn.Module, batch: Batch) -> Split | None:
    """The model cut at the end of its longest frozen prefix (what requires no gradient); None if it has none.

    Args:
        model: with `core.modes.set_trainable` applied.
        batch: some examples to prove the cut on.

    Raises:
        ModelError: no cut fits the model.
        Conflict: a dropout in the frozen prefix is on in training, so what it hands on is never the same.
    """
    if isinstance(model, nn.Sequential):
        return _split_sequential(model)
    frozen = _frozen_tensors(model)
    if isinstance(model, Graft) and not trainable(model.backbone):
        part = Features(model)
        return Split(suffix=HeadAlone(model), reads=model.inputs[0], parts={FEATURES: part}, frozen=frozen)
    depth = _steady_depth(model, min(frozen_depth(model), len(blocks(model)) - 1), batch)
    parts = cut(model, depth, batch)
    shared, keys = LastResult(parts.prefix), inputs_of(model)
    stored = [key for key in parts.suffix.inputs if key not in keys]
    return Split(
        suffix=parts.suffix, reads=keys[0], parts={key: Part(shared, key, keys) for key in stored}, frozen=frozen
    )


def frozen_depth(model: nn.Module) -> int:
    """Number of leading blocks below whose end nothing requires a gradient; 0 where the stem or the first block does."""
    trained = set(trainable(model))
    lowest = next((index for index, names in enumerate(layer_groups(model)) if trained.intersection(names)), 0)
    return min(max(0, lowest - 1), len(blocks(model)))


def _split_sequential(model: nn.Sequential) -> Split | None:
    """Cut after the last layer with parameters before which nothing trains, and nothing acts differently in training."""
    at = 0
    for index, layer in enumerate(model):
        if trainable(layer):
            break
        if any(True for _ in layer.parameters()):
            at = index + 1
        elif any(acts_in_training(part) for part in layer.modules()):
            break
    if at == 0:
        return None
    prefix = model[:at]
    frozen = tuple(prefix.state_dict(keep_vars=True).values())
    return Split(suffix=model[at:], reads="x", parts={"x": prefix}, frozen=frozen)


def acts_in_training(module: nn.Module) -> bool:
    """Does this layer compute something else in training than in eval mode?"""
    return isinstance(module, _NormBase) or (isinstance(module, _DropoutNd) and module.p > 0)


def _steady_depth(model: nn.Module, depth: int, batch: Batch) -> int:
    """The highest depth up to `depth` below which no dropout or batch norm outside frozen modules is called."""
    frozen = {id(part) for module in model.modules() if _is_frozen(module) for part in module.modules()}
    restless = {name for name, part in model.named_modules() if acts_in_training(part) and id(part) not in frozen}
    record = trace(model, {key: batch[key] for key in inputs_of(model)})
    first = min((call.start for call in record.calls if call.name in restless), default=None)
    names = [block.name for block in blocks(model)]
    starts = [call.start if (call := record.first(name)) is not None else -1 for name in names]
    while depth > 0 and first is not None and starts[depth] > first:
        depth -= 1
    if depth == 0:
        culprit = next(call.name for call in record.calls if call.start == first)
        raise Conflict(
            f"{culprit} acts differently in training, so what the frozen prefix of the {type(model).__name__} hands "
            "on is never the same; set its p to 0, or train without a store"
        )
    return depth


def _is_frozen(module: nn.Module) -> bool:
    return bool(getattr(module, "frozen", False))


def _frozen_tensors(model: nn.Module) -> tuple[Tensor, ...]:
    """Parameters that do not train, and buffers of modules that are frozen."""
    buffers = {id(b): b for module in model.modules() if _is_frozen(module) for b in module.buffers()}
    return (*(p for p in model.parameters() if not p.requires_grad), *buffers.values())
