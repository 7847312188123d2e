"""A pretrained network without its head, and the boundaries at which its features can be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regraft.errors import ModelError
from regraft.models.blocks import CHAINS, blocks, depth_of
from regraft.models.causal import is_causal
from regraft.models.pooling import Kind, kind_of
from regraft.models.trace import Trace, holds, produced_by, restructured, tensors_in, trace

Modality = Literal["text", "image", "audio", "table"]


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """A place where features can be read: depth 0 is what enters the first block, depth k the output of block k.

    The deepest one is what the backbone hands out, after its final normalisation where it has one.
    """

    depth: int
    name: str  # the module whose (first) output it is
    kind: Kind
    channels: int


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """What was taken off the top of a network: modules that were dropped, and modules that are passed over."""

    dropped: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def applied(self, module: nn.Module) -> nn.Module:
        """The module without them; the original is left as it was, the rest is shared."""
        edits: dict[str, nn.Module | None] = {name: Skip() for name in self.skipped}
        edits |= dict.fromkeys(self.dropped)
        return restructured(module, edits) if edits else module


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A pretrained network without a head: a value; the module in it is shared by what is built from it."""

    module: nn.Module
    name: str  # hub id, folder or alias it was asked for by
    modality: Modality
    inputs: tuple[str, ...]  # batch keys it is called on
    example: Mapping[str, Tensor]  # one small batch it can be run on, to look at it
    source: str | None = None  # folder of the weights
    licence: str | None = None
    places: tuple[Boundary, ...] = ()  # where it can be read, if that is known already
    cut: Cutting | None = None  # what was taken off its top

    @property
    def model_type(self) -> str:
        """`bert`, `mobilenet_v1`, ... of a transformers model, else the name of the class."""
        config = getattr(self.module, "config", None)
        return str(getattr(config, "model_type", type(self.module).__name__))

    def boundaries(self) -> tuple[Boundary, ...]:
        """Where features can be read, lowest first."""
        return self.places or boundaries(self.module, self.example)


def boundaries(module: nn.Module, example: Mapping[str, Any]) -> tuple[Boundary, ...]:
    """The boundaries of a network, lowest first, found by running it once on an example.

    Depth 0 is left out where the first block takes the model's raw input.
    """
    found = blocks(module)
    if not found:
        raise ModelError(
            f"{type(module).__name__} has no chain of blocks (an nn.ModuleList or nn.Sequential), so its depths cannot be "
            "read; put its blocks in one, or train a head on the last layer"
        )
    record = trace(module, example)
    causal = is_causal(getattr(module, "config", None))
    places: list[Boundary] = []
    entered = record.first(found[0].name)
    if entered is None:
        raise ModelError(
            f"{found[0].name} of {type(module).__name__} was not called on the example, so nothing can be read"
        )
    if entered.taken:
        stem = produced_by(record, entered.taken[0], outside=found[0].name, before=entered.start)
        if stem is not None:
            places.append(_boundary(0, stem.name, stem.given[0], causal=causal))
    for depth, block in enumerate(found, start=1):
        calls = [entry for entry in record.calls if entry.name == block.name]
        if calls and calls[-1].given:
            _require_token_by_token(module, block.name, calls[-1].given[0], example)
            places.append(_boundary(depth, block.name, calls[-1].given[0], causal=causal))
    return (*places[:-1], _top(record, places[-1], causal=causal))


def _require_token_by_token(module: nn.Module, name: str, tensor: Tensor, example: Mapping[str, Any]) -> None:
    """A ModelError where texts go in, but what a block returns is not (N, L, D): XLNet keeps its tokens in front."""
    mask = example.get("attention_mask")
    if isinstance(mask, Tensor) and tensor.ndim == 3 and tensor.shape[:2] != mask.shape[:2]:
        raise ModelError(
            f"{name} of {type(module).__name__} returns {tuple(tensor.shape)} for {tuple(mask.shape)} tokens, which cannot be "
            "pooled example by example; give another model"
        )


def _boundary(depth: int, name: str, tensor: Tensor, *, causal: bool) -> Boundary:
    """The boundary at a module that returned `tensor`."""
    kind = kind_of(tensor, causal=causal)
    return Boundary(depth=depth, name=name, kind=kind, channels=tensor.shape[1 if kind == "map" else -1])


def _top(record: Trace, last: Boundary, *, causal: bool) -> Boundary:
    """The deepest boundary: the module that returned what the backbone hands out, or else the last block.

    GPT-2 hands out a view of what its last norm returned: the same numbers in the same memory.
    """
    handed_out = tensors_in(record.output)[:1]
    if not handed_out:
        return last
    given = [entry.given[0] for entry in record.calls if entry.given]
    made = next((tensor for tensor in reversed(given) if _same_memory(tensor, handed_out[0])), handed_out[0])
    end = produced_by(record, made, outside=last.name, before=1 << 60)
    if end is None or holds(last.name, end.name):
        return last
    return _boundary(last.depth, end.name, end.given[0], causal=causal)


def _same_memory(one: Tensor, other: Tensor) -> bool:
    """Are these the same numbers at the same place, perhaps as another view?"""
    return one.shape == other.shape and one.stride() == other.stride() and one.data_ptr() == other.data_ptr()


class Skip(nn.Module):
    """In place of a module that is not needed: returns its first argument."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first argument, as it came."""
        return args[0] if args else next(iter(kwargs.values()))


def cutting_above(module: nn.Module, example: Mapping[str, Any], name: str) -> Cutting:
    """What of a network is not needed for the output of module `name`.

    Blocks and stages above are dropped; what else has parameters and runs later (a final norm, a pooler) is passed over.
    """
    record = trace(module, example)
    reached = record.first(name)
    if reached is None:
        raise ModelError(f"{name} was not called on the example, so the model cannot be cut there; use the whole model")
    found = [block.name for block in blocks(module)]
    later = {entry.name for entry in record.calls if entry.start > reached.end}
    later -= {found[0]}  # some networks (DeBERTa) do not run without any block, so the first one always stays
    kept = [block for block in found if block not in later] + [name]
    dropped: list[str] = []
    skipped: list[str] = []
    for other, part in module.named_modules():
        if not other or any(holds(done, other) for done in (*dropped, *skipped)):
            continue
        if any(holds(other, part_kept) or holds(part_kept, other) for part_kept in kept):
            continue
        inside = any(holds(other, block) for block in found)
        if inside and isinstance(module.get_submodule(other.rpartition(".")[0]), CHAINS):
            dropped.append(other)  # a block above the cut, or a stage that holds nothing but such blocks
        elif other in later and any(True for _ in part.parameters()) and depth_of(other, module) > len(found):
            skipped.append(other)
    return Cutting(dropped=tuple(dropped), skipped=tuple(skipped))


def plain_backbone(
    module: nn.Module,
    example: Tensor,
    *,
    modality: Modality,
    name: str = "network",
    licence: str | None = None,
) -> Backbone:
    """A network of one's own as a backbone: its last linear layer is passed over, the rest is shared.

    Args:
        module: takes one tensor, or declares one batch key as `inputs`.
        example: a batch it can be run on, (N, ...).
        modality: of the data it takes.
        name: how reports call it.
        licence: of its weights, if known.
    """
    keys: tuple[str, ...] = tuple(getattr(module, "inputs", ("x",)))
    linear = [child for child, part in module.named_modules() if isinstance(part, nn.Linear)]
    outside = [child for child in linear if not any(holds(block.name, child) for block in blocks(module))]
    headless = module
    if outside:
        headless = restructured(module, {outside[-1]: Skip()})
    elif isinstance(module, nn.Sequential) and linear and linear[-1] == str(len(module) - 1):
        headless = module[:-1]
    with torch.no_grad():
        return Backbone(
            module=headless,
            name=name,
            modality=modality,
            inputs=keys,
            example={keys[0]: example[:2].clone()},
            licence=licence,
        )
