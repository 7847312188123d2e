"""Activations of blocks are recomputed in the backward pass instead of kept: memory for time, with the same gradients."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from regraft.core import Hook, Recipe, Run, Stage, Technique, each_stage
from regraft.core.descent import OneUpdate
from regraft.core.trial import next_batches, trial
from regraft.core.values import Batch, Loss
from regraft.errors import ConfigError, Conflict
from regraft.layers.stand_in import own_forward, replace_forward, restore_forward
from regraft.models.blocks import Block, blocks

LOOK = 8  # batches of which the largest is measured
GB = 1e9


# ---- the plan


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Bytes that the backward pass of one batch needs, beside parameters and buffers."""

    blocks: tuple[int, ...]  # saved within each block
    inputs: tuple[int, ...]  # of each block, which are kept when it is recomputed
    outside: int  # saved outside all blocks

    @property
    def total(self) -> int:
        """With nothing recomputed."""
        return self.outside + sum(self.blocks)

    def peak(self, count: int) -> int:
        """With the lowest `count` blocks recomputed.

        The largest of two moments: before the backward pass, with everything kept; and deep in it, with one recomputed block.
        """
        kept = self.outside + sum(self.inputs[:count])
        return max(kept + sum(self.blocks[count:]), kept + max(self.blocks[:count], default=0))


def fewest_recomputed(saved: Saved, budget: float) -> int | None:
    """The least number of blocks, from the lowest, whose recomputation fits the peak into `budget` bytes; None if none does.

    The lowest ones, because what lies above them is freed before they are reached.
    """
    return next((count for count in range(len(saved.blocks) + 1) if saved.peak(count) <= budget), None)


# ---- recomputing one block


class _Body(nn.Module):
    """A block without the hooks on it, which run around both of its passes."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return own_forward(self.block, *args, **kwargs)


def recomputed(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The module's output; what its backward pass needs is computed again when it is needed.

    Generators are put back to where they were, so that dropout draws the same. The second pass uses the tensors of the first
    one, also where a functional call has put others into the module, and copies of the buffers, so that running statistics
    are not updated twice.
    """
    if not torch.is_grad_enabled():
        return own_forward(module, *args, **kwargs)
    body = _Body(module)
    used = dict(body.named_parameters())
    passes = 0

    def compute(*args: Any, **kwargs: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes == 1:
            return body(*args, **kwargs)
        buffers = {name: buffer.clone() for name, buffer in body.named_buffers()}
        return functional_call(body, {**used, **buffers}, args, kwargs)

    return checkpoint(compute, *args, use_reentrant=False, preserve_rng_state=True, **kwargs)


# ---- measuring


class _Measured(Exception):  # no error: it ends a step after its forward pass
    pass


def measure(run: Run, found: Sequence[Block]) -> Saved:
    """Bytes saved for the backward pass by the largest of the first batches, in the slices and the precision of the update."""
    stage, model = run.stage, run.stage.model
    batches = next_batches(run, LOOK)
    largest = max(batches, key=lambda batch: sum(value.numel() for value in batch.values()))
    meter = _Meter(found, (*model.parameters(), *model.buffers()))

    def forward_only(part: Batch) -> Loss:
        with meter.watching():
            stage.objective(model, part, run.clock)
        raise _Measured

    with trial(run):
        try:
            run.step.updates["all"].gradients(forward_only, largest)
        except _Measured:
            return meter.saved()
    raise ConfigError("ActivationCheckpointing: the update computed no loss, so nothing can be measured; give `blocks`")


class _Meter:
    """Counts what autograd saves, by the block it is saved in; storages that are saved twice count once."""

    def __init__(self, found: Sequence[Block], owned: Sequence[Tensor]) -> None:
        self.found = found
        self.owned = {tensor.untyped_storage().data_ptr() for tensor in owned}
        self.seen: dict[int, Tensor] = {}  # the tensors are held, so that no address comes twice
        self.bytes = [0] * (len(found) + 1)
        self.inputs = [0] * len(found)
        self.inside = len(found)  # index of the block that is running; the last: none

    def saved(self) -> Saved:
        """What was counted; the tensors are let go."""
        self.seen.clear()
        return Saved(blocks=tuple(self.bytes[:-1]), inputs=tuple(self.inputs), outside=self.bytes[-1])

    @contextmanager
    def watching(self) -> Generator[None]:
        handles = [handle for index, block in enumerate(self.found) for handle in self._hooks(index, block.module)]
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, index: int, module: nn.Module) -> list[Any]:
        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            self.inside = index
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            self.inputs[index] += sum(tensor.nbytes for tensor in given)

        def leave(*_: Any) -> None:
            self.inside = len(self.found)

        return [module.register_forward_pre_hook(enter, with_kwargs=True), module.register_forward_hook(leave)]

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.owned and storage.data_ptr() not in self.seen:
            self.seen[storage.data_ptr()] = tensor.detach()
            self.bytes[self.inside] += storage.nbytes()
        return tensor


# ---- the hook and the technique


class Recompute(Hook):
    """Lets the chosen blocks of the stage's model recompute from the stage's start to its end."""

    def __init__(self, spec: ActivationCheckpointing) -> None:
        self.spec = spec
        self.count: int | None = None

    def on_start(self, run: Run) -> None:
        """Choose the blocks when the stage starts in this process; the gradients do not depend on the choice."""
        found = blocks(run.stage.model)
        if self.count is None:
            self.count = self._choose(run, found)
        for block in found[: self.count]:
            replace_forward(block.module, recomputed)

    def on_end(self, run: Run) -> None:
        """Take the stand-ins away."""
        for block in blocks(run.stage.model):
            restore_forward(block.module)
        self.count = None

    def _choose(self, run: Run, found: Sequence[Block]) -> int:
        if self.spec.blocks != "auto":
            return len(found) if self.spec.blocks == "all" else min(self.spec.blocks, len(found))
        saved = measure(run, found)
        count = fewest_recomputed(saved, self.spec.memory_gb * GB)
        if count is None:
            raise ConfigError(
                f"ActivationCheckpointing.memory_gb: the activations of a batch need {saved.peak(len(found)) / GB:.3g} GB with "
                f"all {len(found)} blocks recomputed ({saved.total / GB:.3g} GB with none), got {self.spec.memory_gb:g}; "
                "allow more, or cut the batch with train.micro"
            )
        run.note(
            f"ActivationCheckpointing: {count} of {len(found)} blocks are recomputed; activations of the largest of the first "
            f"{LOOK} batches take {saved.peak(count) / GB:.3g} GB instead of {saved.total / GB:.3g} GB, with "
            f"{self.spec.memory_gb:g} GB allowed"
        )
        return count


class ActivationCheckpointing(Technique):
    """Recomputes the activations of blocks in the backward pass, as few blocks as a memory budget asks for.

    Chen et al., 2016, arXiv:1604.06174, section 4.1, with the blocks of the network as segments. What autograd keeps for one
    batch is measured when the stage starts; the lowest blocks are recomputed, since what lies above them is freed before they
    are reached. Gradients are those without it, bit for bit, also with dropout, and running statistics are updated once.

    Use it when a batch does not fit into memory: one more forward pass of the recomputed blocks buys most of their memory
    back. Not when it fits, and not before trying a smaller `train.micro` slice, which costs less where a batch has many
    examples.

    Attributes:
        memory_gb: gigabytes that the activations of one slice of a batch may take; used with `blocks: auto`.
        blocks: auto is as few as the budget asks for; or all, or how many, counted from the lowest.

    Example:
        ```yaml
        techniques:
          - ActivationCheckpointing: {memory_gb: 2}
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"hooks"})

    memory_gb: float = Field(default=4.0, gt=0)
    blocks: Literal["auto", "all"] | int = Field(default="auto")

    def apply(self, recipe: Recipe) -> Recipe:
        """Add the hook to every stage, before those that look at the model."""
        return each_stage(recipe, self._recomputing)

    def _recomputing(self, stage: Stage[Any]) -> Stage[Any]:
        if isinstance(self.blocks, int) and self.blocks < 1:
            raise ConfigError(f"ActivationCheckpointing.blocks: at least 1, or auto, or all, got {self.blocks}")
        if not blocks(stage.model):
            raise Conflict(
                f"ActivationCheckpointing: no chain of blocks was found in the {type(stage.model).__name__} of stage "
                f"{stage.name!r}; put its blocks into an nn.Sequential or nn.ModuleList, or drop ActivationCheckpointing"
            )
        if self.blocks == "auto" and stage.step is not OneUpdate:
            raise Conflict(
                f"ActivationCheckpointing: the step of stage {stage.name!r} makes several updates, so the memory of one batch "
                "cannot be measured; give `blocks: all` or their number"
            )
        return replace(stage, hooks=(Recompute(self), *stage.hooks))
