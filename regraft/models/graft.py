"""Graft: a backbone with one linear head on the pooled features of chosen depths (Head2Toe, Evci et al. 2022, arXiv:2201.03529).

The standardisation of the features is folded into the head, so that what is left is a plain backbone and a linear layer.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regraft.core.modes import eval_mode
from regraft.errors import ModelError
from regraft.layers.packing import layout_of
from regraft.layers.prompt import words_only
from regraft.models.backbone import Backbone, Boundary, Cutting, cutting_above
from regraft.models.heads import folded
from regraft.models.packing import MASK, Packing, proved_packing, saves_rows
from regraft.models.pooling import POOLS, pooled, require_pool, width
from regraft.models.trace import call, tensors_in

Read = tuple[int, str]  # a depth and how its output is pooled
WORTH = (
    0.05  # share of a batch's places that must be saved for its examples to share rows: masks and copies cost something
)


@contextmanager
def captured(module: nn.Module, places: Iterable[Boundary]) -> Generator[dict[int, Tensor]]:
    """Inside the block, a call of the module leaves the outputs at these boundaries in the mapping, by depth.

    Hooks live for one call only, so a copy or a pickle of the model never writes into the original.
    """
    seen: dict[int, Tensor] = {}

    def keep(depth: int) -> Any:
        def hook(part: nn.Module, args: Any, output: Any) -> None:
            seen[depth] = tensors_in(output)[0]

        return hook

    handles = [module.get_submodule(place.name).register_forward_hook(keep(place.depth)) for place in places]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class Graft(nn.Module):
    """A backbone read at `depths`, pooled by `pools`, with a linear head; called on the batch keys `inputs`.

    Attributes:
        inputs: batch keys it is called on.
        boundaries: where this backbone can be read.
        reads: the (depth, pool) pairs in the order in which the head sees them.
        cut: what was taken off the top of the backbone.
        packing: how examples share rows; None where each has a row of its own.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        depths: Iterable[int],
        pools: Iterable[str],
        num_outputs: int,
        inputs: tuple[str, ...] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.inputs = tuple(inputs or backbone.inputs)
        self.backbone = backbone.module
        self.name, self.modality, self.licence = backbone.name, backbone.modality, backbone.licence
        self.model_type, self.source = backbone.model_type, backbone.source
        self.example = dict(backbone.example)
        self.boundaries = backbone.boundaries()
        self.depths = tuple(sorted(set(depths)))
        self.pools = tuple(dict.fromkeys(pools))
        self.reads = self._reads()
        self.cut = backbone.cut or Cutting()
        self.packing: Packing | None = None
        self.head = _linear(sum(self.read_widths().values()), num_outputs, seed)

    @property
    def top(self) -> int:
        """The deepest depth this backbone has."""
        return self.boundaries[-1].depth

    def boundary(self, depth: int) -> Boundary:
        """The boundary at a depth, or a ModelError that says which depths there are."""
        for place in self.boundaries:
            if place.depth == depth:
                return place
        names = f"{self.boundaries[0].depth} to {self.top}"
        raise ModelError(f"depths: {self.name} has the depths {names}, got {depth}")

    def _reads(self) -> tuple[Read, ...]:
        """Depth by depth, pool by pool; a vector is taken as it is, once."""
        if not self.depths or not self.pools:
            raise ModelError("a graft reads at least one depth with at least one pool; got none")
        reads: list[Read] = []
        for depth in self.depths:
            kind = self.boundary(depth).kind
            reads += [(depth, "mean")] if kind == "vector" else [(depth, pool) for pool in self.pools]
            if kind != "vector":
                for pool in self.pools:
                    require_pool(kind, pool)
        return tuple(reads)

    def read_widths(self) -> dict[Read, int]:
        """Number of features of each read, in the order of the head's input."""
        places = {read: self.boundary(read[0]) for read in self.reads}
        return {read: width(place.kind, place.channels, read[1]) for read, place in places.items()}

    def reading(self, *, depths: Iterable[int], pools: Iterable[str], num_outputs: int, seed: int = 0) -> Graft:
        """A graft on a copy of this backbone that reads other depths, with a fresh head; this one is left as it is."""
        other = copy.deepcopy(self)
        other.depths, other.pools = tuple(sorted(set(depths))), tuple(dict.fromkeys(pools))
        other.reads = other._reads()
        other.head = _linear(sum(other.read_widths().values()), num_outputs, seed)
        return other

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits (N, C) of the batch keys `inputs`."""
        return self.head(self.features(**inputs))

    def features(self, **inputs: Tensor) -> Tensor:
        """The head's input (N, F): the pooled outputs of all reads side by side, in fp32."""
        places = [self.boundary(depth) for depth in self.depths]
        return self.joined(self.outputs(places, inputs), inputs.get(MASK))

    def outputs(self, places: Iterable[Boundary], inputs: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """The outputs (N, ...) at these boundaries by depth; packed, those at padding are 0."""
        layout = layout_of(inputs[MASK]) if self.packing is not None and saves_rows(inputs) else None
        if self.packing is None or layout is None or layout.saved < WORTH:
            with captured(self.backbone, places) as seen:
                call(self.backbone, inputs)
            return words_only(self.backbone, seen, inputs[MASK].shape[1]) if MASK in inputs else seen
        with captured(self.backbone, places) as seen:
            call(self.backbone, self.packing.inputs(self.backbone, inputs, layout))
        return {depth: layout.unpack(values) for depth, values in seen.items()}

    def pack(self) -> None:
        """From now on examples share rows. ModelError, with the reason, where the backbone then gives other numbers.

        Numbers agree to 1e-5 of the largest in eval mode; in training mode dropout draws other masks. A batch in which less
        than 5 % of the places would be saved is run as it is.
        """
        if MASK not in self.inputs or any(place.kind not in ("tokens", "causal") for place in self.boundaries):
            raise ModelError(f"packing: {self.name} does not read texts token by token; leave `packing` out")
        self.packing = proved_packing(self.backbone, name=self.name)

    def unpacked(self) -> Graft:
        """This graft with a row for each example; backbone, head and all parameters are shared."""
        if self.packing is None:
            return self
        other = copy.copy(self)
        other._modules, other.packing = dict(self._modules), None
        return other

    def joined(
        self, seen: Mapping[int, Tensor], mask: Tensor | None, stored: Mapping[Read, Tensor] | None = None
    ) -> Tensor:
        """The head's input from the outputs of blocks by depth; reads that are `stored` are taken from there."""
        stored = stored or {}
        columns = [stored[read] if read in stored else pooled(seen[read[0]], read[1], mask) for read in self.reads]
        return torch.cat(columns, dim=1)

    def all_features(self, *, pools: Iterable[str] | None = None, **inputs: Tensor) -> dict[Read, Tensor]:
        """Every boundary pooled in every way, from one forward pass: (depth, pool) -> (N, F) fp32; `pools` limits the ways."""
        seen, mask = self.outputs(self.boundaries, inputs), inputs.get(MASK)
        return {(depth, pool): pooled(seen[depth], pool, mask) for depth, pool in self.all_reads(pools)}

    def all_reads(self, pools: Iterable[str] | None = None) -> dict[Read, int]:
        """Every boundary pooled in every way, and how many features that gives; `pools` limits the ways."""
        wanted = None if pools is None else set(pools)
        return {
            (place.depth, pool): width(place.kind, place.channels, pool)
            for place in self.boundaries
            for pool in POOLS[place.kind]
            if wanted is None or pool in wanted or place.kind == "vector"
        }

    @torch.no_grad()
    def set_head(
        self, weight: Tensor, bias: Tensor, *, mean: Tensor | None = None, deviation: Tensor | None = None
    ) -> None:
        """Put in a head fitted on standardised features: weight (C, F), bias (C,), mean (F,), deviation (F,); see `folded`."""
        put_linear(self.head, *folded(weight, bias, mean=mean, deviation=deviation))

    def cut_above(self, depth: int | None = None) -> int:
        """Number of parameters dropped: what runs above `depth` (default: the highest depth in use) leaves the model.

        The features are compared bit for bit on the backbone's example; a ModelError if they changed.
        """
        highest = self.depths[-1] if depth is None else depth
        if highest < self.depths[-1]:
            raise ModelError(f"cut_above: the head reads depth {self.depths[-1]}, so the cut cannot be at {highest}")
        before = count_parameters(self.backbone)
        cutting = cutting_above(self.backbone, self.example, self.boundary(highest).name)
        shorter = cutting.applied(self.backbone)
        places = [self.boundary(d) for d in self.depths]
        if not _same_outputs(self.backbone, shorter, places, self.example):
            raise ModelError(f"{self.name} computes other features when cut above depth {highest}; keep it whole")
        self.backbone = shorter
        self.cut = Cutting(dropped=self.cut.dropped + cutting.dropped, skipped=self.cut.skipped + cutting.skipped)
        self.boundaries = tuple(place for place in self.boundaries if place.depth <= highest)
        return before - count_parameters(shorter)


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def put_linear(linear: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Copy a weight (C, F) and bias (C,) into a linear layer; a ModelError if the shapes differ."""
    if tuple(weight.shape) != tuple(linear.weight.shape):
        raise ModelError(f"the head takes a weight of shape {tuple(linear.weight.shape)}, got {tuple(weight.shape)}")
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)


def _linear(features: int, outputs: int, seed: int) -> nn.Linear:
    """A linear layer that starts at zero bias and small weights drawn from `seed`."""
    layer = nn.Linear(features, outputs)
    with torch.no_grad():
        layer.weight.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(seed))
        layer.bias.zero_()
    return layer


@torch.no_grad()
def _same_outputs(whole: nn.Module, shorter: nn.Module, places: list[Boundary], example: Mapping[str, Tensor]) -> bool:
    """Do two networks give the same bits at these boundaries?"""
    outputs: list[dict[int, Tensor]] = []
    for module in (whole, shorter):
        with eval_mode(module), captured(module, places) as seen:
            call(module, example)
        outputs.append(dict(seen))
    return all(torch.equal(outputs[0][place.depth], outputs[1][place.depth]) for place in places)
