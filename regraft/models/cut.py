"""One cut for any model whose blocks run one after another: no code per architecture.

    tap      what enters block k, the activation to store (`models.tap`)
    suffix   the same model with stand-ins for what made that activation, called on the stored one

The model's own forward makes masks and positions as always, so nothing about it need be known. Before a cut is trusted, a batch
is run both ways and the bits are compared. What a graft reads at or below the cut is frozen too, so it is stored beside.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regraft.core.forward import called_on
from regraft.core.modes import eval_mode
from regraft.core.values import Batch
from regraft.errors import ModelError
from regraft.models.blocks import blocks
from regraft.models.graft import Graft, captured
from regraft.models.tap import Read, Tap, stored_key, structure_of, tapped, tensors_of
from regraft.models.trace import Trace, call, holds, restructured, trace

HIDDEN = "hidden"


class Slot:
    """Holds the stored activation for the duration of one call of a suffix; its stand-ins read it."""

    def __init__(self) -> None:
        self.value: Tensor | None = None


class StandIn(nn.Module):
    """In place of a frozen module: gives the stored activation, in the structure the module returned.

    Attributes that parents read (a layer's index, the type of its weights) are those of the module it stands for, which is
    kept out of the tree: its parameters are not the suffix's.
    """

    def __init__(self, slot: Slot, replaced: nn.Module, template: Any) -> None:
        super().__init__()
        self.slot, self.template = slot, template
        self.__dict__["replaced"] = replaced

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "replaced" not in self.__dict__:
            return super().__getattr__(name)
        return getattr(self.__dict__["replaced"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The activation, or a tuple with it in place of each tensor."""
        return _filled(self.template, self.slot.value)


@dataclass(frozen=True, slots=True)
class _Hole:
    """Marks in a template where a tensor was."""


class Suffix(nn.Module):
    """The model from block k on: called on `inputs`, the stored tensors and what else the upper blocks take (masks).

    Parameters are the model's own under their original names; what is below the cut is not in it.
    """

    if TYPE_CHECKING:
        whole: Any

    def __init__(
        self, whole: nn.Module, slot: Slot, *, main: str, passed: tuple[str, ...], reads: tuple[Read, ...]
    ) -> None:
        super().__init__()
        self.__dict__["whole"] = whole  # not a child: its children are this module's, under the same names
        self._modules, self._parameters, self._buffers = whole._modules, whole._parameters, whole._buffers
        self.slot, self.main, self.passed, self.reads = slot, main, passed, reads
        self.training = whole.training
        self.inputs = (HIDDEN, *(stored_key(read) for read in reads), *passed)

    def train(self, mode: bool = True) -> Suffix:
        """Training mode for this module and all it shares."""
        super().train(mode)
        self.whole.training = mode
        return self

    @property
    def head(self) -> nn.Module:
        """The head of the whole model."""
        return self.whole.head

    def forward(self, **inputs: Tensor) -> Tensor:
        """The output of the whole model."""
        self.slot.value = inputs[HIDDEN]
        given = {key: inputs[key] for key in self.passed}
        if self.main not in given:
            given = {self.main: inputs[HIDDEN], **given}  # never looked at: the stand-ins answer
        try:
            if not isinstance(self.whole, Graft):
                return call(self.whole, given)
            places = _places(self.whole, set(self.whole.depths) - {depth for depth, _ in self.reads})
            with captured(self.whole.backbone, places) as seen:
                call(self.whole.backbone, given)
            stored = {read: inputs[stored_key(read)] for read in self.reads}
            return self.whole.head(self.whole.joined(seen, inputs.get("attention_mask"), stored))
        finally:
            self.slot.value = None


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A model in two parts at block `k` (0-based): what the tap gives enters it, and the suffix goes on from there."""

    model: nn.Module
    k: int
    tap: Tap
    suffix: Suffix

    @property
    def writes(self) -> dict[str, str]:
        """Column of the tap -> key the suffix takes it under."""
        return {self.tap.column: HIDDEN} | {stored_key(read): stored_key(read) for read in self.tap.reads}

    def verify(self, batch: Batch) -> None:
        """Run a batch whole and in two parts, in eval mode; a ModelError with the reason unless the bits are the same."""
        inputs = called_on(self.model, batch)
        with torch.no_grad(), eval_mode(self.model), eval_mode(self.suffix):
            whole = call(self.model, inputs)
            try:
                columns = tapped(self.model, (self.tap,), inputs)
                stored = inputs | {key: columns[column] for column, key in self.writes.items()}
                parts = self.suffix(**{key: stored[key] for key in self.suffix.inputs})
            except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
                reason = " ".join(str(error).split())[:160]
                raise _refused(self.model, self.k, f"its upper part does not run alone ({reason})") from None
        if not torch.equal(whole, parts):
            raise _refused(self.model, self.k, "its two parts give other numbers than the whole")


def cut(model: nn.Module, k: int, batch: Batch) -> Cut:
    """The model in two parts at block `k`, from 1 to the number of blocks less one; proved on the batch and on its first example.

    Raises:
        ModelError: something below the cut trains, or no cut there gives the bits of the whole model.
    """
    if isinstance(model, Graft):
        model = model.unpacked()  # what is stored is stored example by example
    found = blocks(model)
    if not 1 <= k < len(found):
        raise ModelError(f"a cut must be at a block from 1 to {len(found) - 1} of {type(model).__name__}, got {k}")
    inputs = called_on(model, batch)
    record = trace(model, inputs)
    block = found[k].name
    entered = record.first(block)
    if entered is None or not entered.taken or sum(entry.name == block for entry in record.calls) > 1:
        raise _refused(model, k, f"{block} is not called exactly once, with a tensor")
    chain, raw = _chain(record, entered.taken[0], block, entered.start, inputs)
    below = _before(model, record, entered.start, block)
    _require_frozen(below)
    slot = Slot()
    edits: dict[str, nn.Module | None] = {
        name: StandIn(slot, model.get_submodule(name), _template(output)) for name, output in chain.items()
    }
    reads = tuple(read for read in model.reads if read[0] <= k) if isinstance(model, Graft) else ()
    main, passed = _keywords(model, tuple(inputs), raw)
    suffix = Suffix(restructured(model, edits), slot, main=main, passed=passed, reads=reads)
    holders = [module for name, module in model.named_modules() if holds(name, block) and name != block]
    own = [t for module in holders for t in (*module.parameters(recurse=False), *module.buffers(recurse=False))]
    tensors = (*tensors_of(list(below.values())), *own)
    tap = Tap(block, reads, tensors, structure_of(below))
    parts = Cut(model=model, k=k, tap=tap, suffix=suffix)
    parts.verify(batch)
    parts.verify({key: value[:1] for key, value in batch.items()})
    return parts


def _chain(
    record: Trace, tensor: Tensor, block: str, before: int, inputs: Mapping[str, Tensor]
) -> tuple[dict[str, Any], str | None]:
    """What made the activation, module by module back to the inputs: name -> output; and the input it began with, if it did."""
    chain: dict[str, Any] = {}
    while True:
        raw = next((key for key, value in inputs.items() if value is tensor), None)
        if raw is not None:
            return chain, raw
        makers = [
            entry
            for entry in record.calls
            if 0 <= entry.end < before and not holds(entry.name, block) and any(t is tensor for t in entry.given[:1])
        ]
        maker = max(makers, key=lambda entry: entry.end, default=None)
        if maker is None or not maker.taken or maker.name in chain:
            return chain, None
        chain[maker.name] = maker.output
        tensor, before = maker.taken[0], maker.start


def _keywords(model: nn.Module, keys: tuple[str, ...], raw: str | None) -> tuple[str, tuple[str, ...]]:
    """The keyword the activation stands in for, and the inputs that are still passed on."""
    network = model.backbone if isinstance(model, Graft) else model
    network = getattr(network, "whole", network)
    if raw is None:
        return keys[0], keys
    if raw == "input_ids" and "inputs_embeds" in inspect.signature(network.forward).parameters:
        return "inputs_embeds", tuple(key for key in keys if key not in ("input_ids", "token_type_ids"))
    return raw, tuple(key for key in keys if key != raw)


def _before(model: nn.Module, record: Trace, start: int, block: str) -> dict[str, nn.Module]:
    """The outermost modules that run before the cut and do not hold the block it is at, by name."""
    names: list[str] = []
    for entry in record.calls:
        if entry.start < start and not holds(entry.name, block) and not any(holds(name, entry.name) for name in names):
            names.append(entry.name)
    return {name: model.get_submodule(name) for name in names}


def _require_frozen(below: Mapping[str, nn.Module]) -> None:
    """A ModelError if something that runs before the cut trains."""
    for owner, module in below.items():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                raise ModelError(f"{owner}.{name} trains, so what it computes cannot be stored; freeze it or cut lower")


def _refused(model: nn.Module, k: int, reason: str) -> ModelError:
    """The error of a cut that cannot be made."""
    return ModelError(f"{type(model).__name__} cannot be cut at block {k}: {reason}; train it without a store")


def _places(model: nn.Module, depths: set[int]) -> list[Any]:
    """The boundaries of a graft at some depths; none for other models."""
    return [model.boundary(depth) for depth in sorted(depths)] if isinstance(model, Graft) else []


def _template(output: Any) -> Any:
    """An output with holes for its tensors."""
    if isinstance(output, Tensor):
        return _Hole()
    if type(output) in (tuple, list):
        return type(output)(_template(item) for item in output)
    return copy.copy(output)


def _filled(template: Any, value: Tensor | None) -> Any:
    """A template with the value in each hole."""
    if isinstance(template, _Hole):
        return value
    if type(template) in (tuple, list):
        return type(template)(_filled(item, value) for item in template)
    return template
