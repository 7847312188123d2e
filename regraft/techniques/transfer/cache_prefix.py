"""What is frozen is computed once: the frozen prefix of a stage's model moves into its source."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from regraft.core.descent import OneUpdate
from regraft.core.forward import forward, inputs_of
from regraft.core.modes import set_trainable
from regraft.core.protocols import Source, State
from regraft.core.stage import Recipe, Stage, each_stage, trainable
from regraft.core.technique import Technique
from regraft.core.values import Batch
from regraft.data.precompute import MASK, MemoryStore, Precompute, evaluating
from regraft.errors import Conflict, ModelError
from regraft.models.blocks import blocks
from regraft.models.split import Split, frozen_depth, split

TOLERANCE = 1e-5  # of the largest output: a stored row may have been computed in a batch of another shape
IDLE = 20  # batches without a new example after which a store counts as filled
LOOK = 8  # examples a cut is proved on


class PrefixSource(Source):
    """`base` with what the prefix computes in its batches: once for each example, as long as the prefix stays the same."""

    def __init__(self, base: Source, parts: Split, *, ragged: frozenset[str], max_bytes: int) -> None:
        """Add the stored tensors of `parts`; those in `ragged` have an entry a token. `max_bytes` is for all of them."""
        self.base, self.split, self.ragged, self.max_bytes = base, parts, ragged, max_bytes
        self._kept: tuple[str, list[Precompute]] | None = None

    @property
    def repeatable(self) -> bool:
        """As the source is."""
        return self.base.repeatable

    @property
    def inputs(self) -> Mapping[str, str]:
        """As the source's."""
        return self.base.inputs

    @property
    def computed(self) -> int:
        """Number of examples the prefix was run on since its weights last changed."""
        return self._kept[1][0].computed if self._kept else 0

    def batches(self, model: nn.Module, start: int = 0, /) -> Iterator[Batch]:
        """The source's batches with the results added; a store made by other weights is thrown away.

        Rows are computed in the batches they first appear in. A run that is resumed draws those again, so that it goes on
        with the same bits.
        """
        now = fingerprint(self.split.frozen)
        if self._kept is None or self._kept[0] != now:
            self._kept = (now, self._fresh())
            self._replay(model, start)
        yield from self._kept[1][-1].batches(model, start)

    def _replay(self, model: nn.Module, steps: int) -> None:
        """Fill the store as the first `steps` steps did, until they brought nothing new for a while."""
        assert self._kept is not None
        idle, before = 0, 0
        for _ in islice(self._kept[1][-1].batches(model, 0), steps):
            idle, before = 0 if self.computed > before else idle + 1, self.computed
            if idle == IDLE:
                return

    def _fresh(self) -> list[Precompute]:
        """A chain over the source with empty stores, a link for each stored tensor."""
        reads, chain = self.split.reads, list[Precompute]()
        for key, part in self.split.parts.items():
            below = chain[-1] if chain else self.base
            writes = {f"{role}{reads}": f"{role}{key}" for role in roles_of(self.base, reads)}
            store = MemoryStore(self.max_bytes // len(self.split.parts))
            chain.append(Precompute(below, part, writes, store=store, ragged=key in self.ragged))
        return chain

    def state_dict(self) -> State:
        """The inner source's; results can be computed again."""
        return self.base.state_dict()

    def load_state_dict(self, state: State, /) -> None:
        """Hand it to the inner source."""
        self.base.load_state_dict(state)


def roles_of(source: Source, key: str) -> list[str]:
    """What stands before `key` in the inputs of a source: "" for the examples themselves, `target_`, `support_`, ..."""
    return [name.removesuffix(key) for name in source.inputs if name == key or name.endswith(f"_{key}")]


def fingerprint(tensors: tuple[Tensor, ...]) -> str:
    """Hex digest of tensors, their shapes and types."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


# ---- looking before cutting


@contextmanager
def as_trained(stage: Stage[Any]) -> Generator[nn.Module]:
    """The stage's model with what the stage freezes frozen; after the block it is as it was."""
    model: nn.Module = stage.model
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    marks = {module: getattr(module, "frozen", False) for module in model.modules()}
    set_trainable(model, stage.trains)
    try:
        yield model
    finally:
        for parameter, requires_grad in required.items():
            parameter.requires_grad_(requires_grad)
        for module, mark in marks.items():
            module.frozen = mark  # type: ignore[assignment]


def first_examples(stage: Stage[Any]) -> Batch:
    """Some examples of the stage's first batch under the keys the model is called on; of tasks, those of the first.

    Raises:
        Conflict: the source does not yield what the model is called on.
    """
    keys = inputs_of(stage.model)
    roles = roles_of(stage.source, keys[0])
    if not roles:
        raise Conflict(
            f"CachePrefix: the model of stage {stage.name!r} reads {keys[0]!r}, but its source yields "
            f"{sorted(stage.source.inputs)}"
        )
    with torch.random.fork_rng(devices=[]):
        batch = next(iter(stage.source.batches(stage.model, 0)))
    ids = batch[stage.source.inputs[f"{roles[0]}{keys[0]}"]]
    flat = {key: batch[f"{roles[0]}{key}"].flatten(0, ids.ndim - 1) for key in keys}
    return {key: value[:LOOK] for key, value in flat.items()}


@torch.no_grad()
def ragged_parts(parts: Split, batch: Batch) -> frozenset[str]:
    """Keys of the stored tensors that have an entry a token, (N, L, ...)."""
    if MASK not in batch:
        return frozenset()
    outputs = {key: forward(part, batch) for key, part in parts.parts.items()}
    return frozenset(key for key, out in outputs.items() if out.ndim > 2 and out.shape[1] == batch[MASK].shape[1])


@torch.no_grad()
def verify(model: nn.Module, parts: Split, batch: Batch, ragged: frozenset[str]) -> None:
    """Compare the model with its suffix on values that went through a store.

    Raises:
        ModelError: they differ by more than 1e-5 of the largest output.
    """
    stored = {key: forward(part, batch) for key, part in parts.parts.items()}
    for key in ragged:
        stored[key] = stored[key] * batch[MASK].bool().reshape(*batch[MASK].shape, *[1] * (stored[key].ndim - 2))
    with evaluating(model), evaluating(parts.suffix):
        whole, above = forward(model, batch), forward(parts.suffix, batch | stored)
    off, scale = float((whole - above).abs().max()), float(whole.abs().max())
    if not off <= TOLERANCE * max(1.0, scale):
        raise ModelError(
            f"{type(model).__name__} gives other numbers on stored activations (off by {off:.1e}); train it without a store"
        )


class CachePrefix(Technique):
    """Computes the frozen prefix of each stage's model once per example, and trains what is above it on the stored result.

    Weights and losses are those without it; only the frozen part of the forward pass is saved, in every epoch after the first.
    The cut is found from what trains, so LoRA in a low block moves it down by itself, and with `StagedThaw` each stage has
    its own. It is proved on a batch before it is trusted. A stage without a frozen prefix is left as it is.

    Use it when several epochs train only the top of a network. Not with random augmentation (a fixed number of views works) or
    rollouts, which are refused, and not for one epoch.

    Attributes:
        max_gb: memory for stored results in gigabytes; what does not fit is computed again each time.

    Example:
        ```yaml
        techniques:
          - LastK: {blocks: 2}
          - CachePrefix: {max_gb: 4}
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"model", "trains", "source"})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "outer"

    max_gb: float = Field(default=2.0, gt=0)

    def apply(self, recipe: Recipe) -> Recipe:
        """Every stage with a frozen prefix trains the suffix on stored activations."""
        return each_stage(recipe, self._cached)

    def _cached(self, stage: Stage[Any]) -> Stage[Any]:
        with as_trained(stage) as model:
            trained = trainable(model)
            if len(trained) == len(list(model.parameters())):
                return stage
            if not blocks(model):
                raise Conflict(
                    f"CachePrefix: no chain of blocks was found in the {type(model).__name__} of stage {stage.name!r}, so it "
                    "cannot be cut; put its blocks into an nn.Sequential or nn.ModuleList, or drop CachePrefix"
                )
            if frozen_depth(model) == 0:
                return stage
            if stage.step is not OneUpdate:
                raise Conflict(
                    f"CachePrefix: the step of stage {stage.name!r} calls parts of the {type(model).__name__} in a way of its "
                    "own, so a cut cannot be proved; drop CachePrefix"
                )
            if not stage.source.repeatable:
                raise Conflict(
                    f"CachePrefix: stage {stage.name!r} draws examples that differ each time (rollouts or random augmentation), "
                    "so layer outputs cannot be reused; use a fixed number of augmented views, or drop CachePrefix"
                )
            batch = first_examples(stage)
            try:
                parts = split(model, batch)
                if parts is None:
                    return stage
                ragged = ragged_parts(parts, batch)
                verify(model, parts, batch, ragged)
            except ModelError as error:
                raise Conflict(f"CachePrefix: stage {stage.name!r}: {error}") from error
        names = {parameter: name for name, parameter in parts.suffix.named_parameters()}
        return replace(
            stage,
            model=parts.suffix,
            source=PrefixSource(stage.source, parts, ragged=ragged, max_bytes=int(self.max_gb * 1e9)),
            trains=frozenset(names[parameter] for parameter in trained.values()),
        )
