"""What is frozen is computed once: the frozen prefix of a stage's model moves into its source."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from regraft.core.descent import OneUpdate
from regraft.core.forward import called_on, forward, inputs_of
from regraft.core.modes import set_trainable
from regraft.core.protocols import Hook, Source
from regraft.core.run import Run
from regraft.core.stage import Recipe, Stage, trainable
from regraft.core.technique import Technique
from regraft.core.values import Batch
from regraft.data.cache import cache_folder
from regraft.data.precompute import Precompute
from regraft.data.store import Keeping, unpadded
from regraft.data.sweep import evaluating
from regraft.errors import Conflict, ModelError
from regraft.models.blocks import blocks
from regraft.models.frozen import Frozen
from regraft.models.split import Split, frozen_depth, split
from regraft.models.tap import tapped
from regraft.optim.build import precision_of

TOLERANCE = 1e-5  # of the largest output: a stored row may have been computed in a batch of another shape
LOOK = 8  # examples a cut is proved on


def roles_of(source: Source, key: str) -> list[str]:
    """What stands before `key` in the inputs of a source: "" for the examples themselves, `target_`, `support_`, ..."""
    return [name.removesuffix(key) for name in source.inputs if name == key or name.endswith(f"_{key}")]


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
def verify(model: nn.Module, parts: Split, batch: Batch) -> None:
    """Compare the model with its suffix on values that went through a store.

    Raises:
        ModelError: they differ by more than 1e-5 of the largest output.
    """
    with evaluating(model, "fp32"), evaluating(parts.suffix, "fp32"):
        columns = tapped(parts.model, [parts.tap], called_on(model, batch))
        stored = {parts.writes[name]: unpadded(value, batch) for name, value in columns.items()}
        whole, above = forward(model, batch), forward(parts.suffix, batch | stored)
    off, scale = float((whole - above).abs().max()), float(whole.abs().max())
    if not off <= TOLERANCE * max(1.0, scale):
        raise ModelError(
            f"{type(model).__name__} gives other numbers on stored activations (off by {off:.1e}); train it without a store"
        )


@dataclass(frozen=True)
class TellStore(Hook):
    """Says what a stage's stores held, once the stage is over."""

    frozen: Frozen
    at: int

    def on_end(self, run: Run) -> None:
        """Examples and bytes that were kept, where, and what rounding cost."""
        for store in self.frozen.stores(self.at):
            place = "on disk" if store.place is not None else "in memory"
            run.note(
                f"CachePrefix: the store held {store.kept:,} examples, {store.num_bytes / 1e6:,.1f} MB {place}; rounding changed "
                f"a value by {store.rounding:.1e} of the largest at most"
            )


class CachePrefix(Technique):
    """Computes the frozen prefix of each stage's model once per example, and trains what is above it on the stored result.

    Weights and losses are those without it; only the frozen part of the forward pass is saved. One pass over the examples fills
    the store, in batches that every core works on by itself; where several stages have prefixes of their own, as with
    `StagedThaw`, the same pass fills all of them. The cut is found from what trains, so LoRA in a low block moves it down by
    itself. It is proved on a batch before it is trusted. A stage without a frozen prefix is left as it is.

    Use it when two or more epochs train only the top of a network. Not with random augmentation (a fixed number of views works)
    or rollouts, which are refused, and not for one epoch.

    Attributes:
        max_gb: room for stored results in gigabytes; what does not fit is computed again each time.
        keep: in `memory` for this run; or on `disk`, memory-mapped in the cache folder, for every later run over the same data
            with the same weights below the cut. `regraft cache` lists and clears it.
        dtype: `bf16` halves the room; how much the rounding changed is said in the log and the report.

    Example:
        ```yaml
        techniques:
          - LastK: {blocks: 2}
          - CachePrefix: {max_gb: 4, keep: disk}
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"model", "trains", "source", "hooks"})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "outer"

    max_gb: float = Field(default=2.0, gt=0)
    keep: Literal["memory", "disk"] = "memory"
    dtype: Literal["fp32", "bf16"] = "fp32"

    def apply(self, recipe: Recipe) -> Recipe:
        """Every stage with a frozen prefix trains the suffix on stored activations."""
        folder = cache_folder("stores") if self.keep == "disk" else None
        keeping = Keeping(max_bytes=int(self.max_gb * 1e9), half=self.dtype == "bf16", folder=folder)
        shared: dict[tuple[nn.Module, str], Frozen] = {}
        stages: list[Stage[Any]] = []
        for stage in recipe.stages:
            found = self._split(stage)
            if found is None:
                stages.append(stage)
                continue
            parts, trained = found
            precision = precision_of(stage.update)
            frozen = shared.setdefault(
                (stage.model, precision), Frozen(parts.model, [], keeping=keeping, precision=precision)
            )
            if parts.tap not in frozen.taps:
                frozen.taps.append(parts.tap)
            stages.append(_above(stage, parts, trained, frozen, frozen.taps.index(parts.tap)))
        return replace(recipe, stages=tuple(stages))

    def _split(self, stage: Stage[Any]) -> tuple[Split, list[nn.Parameter]] | None:
        """The stage's model in two and what trains; None where nothing below it is frozen."""
        with as_trained(stage) as model:
            trained = trainable(model)
            if len(trained) == len(list(model.parameters())):
                return None
            if not blocks(model):
                raise Conflict(
                    f"CachePrefix: no chain of blocks was found in the {type(model).__name__} of stage {stage.name!r}, so it "
                    "cannot be cut; put its blocks into an nn.Sequential or nn.ModuleList, or drop CachePrefix"
                )
            if frozen_depth(model) == 0:
                return None
            if stage.step is not OneUpdate:
                raise Conflict(
                    f"CachePrefix: the step of stage {stage.name!r} calls parts of the {type(model).__name__} in a way of its "
                    "own, so a cut cannot be proved; drop CachePrefix"
                )
            _require_examples(stage)
            batch = first_examples(stage)
            try:
                parts = split(model, batch)
                if parts is not None:
                    verify(model, parts, batch)
            except ModelError as error:
                raise Conflict(f"CachePrefix: stage {stage.name!r}: {error}") from error
        return None if parts is None else (parts, list(trained.values()))


def _require_examples(stage: Stage[Any]) -> None:
    """A Conflict unless all that the model is called on looks the same each time."""
    key, source = inputs_of(stage.model)[0], stage.source
    ids = {source.inputs[role + key] for role in roles_of(source, key)}
    if ids - source.examples.keys():
        raise Conflict(
            f"CachePrefix: stage {stage.name!r} draws examples that differ each time (rollouts or random augmentation), "
            "so layer outputs cannot be reused; use a fixed number of augmented views, or drop CachePrefix"
        )


def _above(stage: Stage[Any], parts: Split, trained: list[nn.Parameter], frozen: Frozen, at: int) -> Stage[Any]:
    """The stage on the suffix, with a source that adds what tap `at` gives."""
    parts.suffix.steady = getattr(stage.model, "steady", False)  # type: ignore[assignment]  # the suffix is a module of its own
    names = {parameter: name for name, parameter in parts.suffix.named_parameters()}
    key = inputs_of(stage.model)[0]
    roles = roles_of(stage.source, key)
    return replace(
        stage,
        model=parts.suffix,
        source=Precompute(stage.source, frozen, at=at, reads=key, writes=parts.writes, roles=roles),
        trains=frozenset(names[parameter] for parameter in trained),
        hooks=(*stage.hooks, TellStore(frozen, at)),
    )
