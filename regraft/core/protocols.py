"""What plugs into a stage: Objective, Source, Update, Step and Hook, each by its smallest useful interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from regraft.core.values import Batch, Clock, Loss

if TYPE_CHECKING:
    from regraft.core.run import Run
    from regraft.core.stage import Stage

LossFn = Callable[[Batch], Loss]
NamedParams = Mapping[str, nn.Parameter]
State = dict[str, Any]  # nested dicts and lists of tensors and JSON values: what a checkpoint can hold


class Objective(Protocol):
    """What is wanted. An `nn.Module` where it has weights or memory of its own, else a plain function.

    One whose value on a batch is not the mean of its values on slices of it says so by an attribute `splittable = False`.
    """

    def __call__(self, model: nn.Module, batch: Batch, clock: Clock, /) -> Loss:
        """The loss of `model` on `batch` at `clock`, with its gradient."""
        ...


class Encoded(Protocol):
    """N examples in the form a model takes, in memory or memory-mapped: what a source draws batches from."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Batch keys the model is called on: ("input_ids", "attention_mask") for text, ("pixel_values",) or ("x",)."""
        ...

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64 length of each example: tokens for text, 1 where all examples have one shape."""
        ...

    def __len__(self) -> int: ...

    def collate(self, rows: np.ndarray, /) -> dict[str, Tensor]:
        """The examples `rows` (M,) as tensors that share their first dimension M, padded to the longest of them."""
        ...


class Source:
    """Batches as a function of (seed, step): to resume means to start from another step.

    A source has state only where a batch depends on more than (seed, step), such as rollouts that were sampled from an
    earlier policy.
    """

    inputs: Mapping[
        str, str
    ]  # batch keys a model is called on -> key that identifies the example; roles as in `target_x`

    @property
    def examples(self) -> Mapping[str, Encoded]:
        """Key that identifies examples -> all of them, each at the position that is its id; none that look new each time.

        What depends on an example alone can be computed once for each of these, see `data.precompute`.
        """
        return {}

    def batches(self, model: nn.Module, start: int = 0, /) -> Iterator[Batch]:
        """An endless iterator over the batches of steps `start`, `start + 1`, ..."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its batches are")

    def state_dict(self) -> State:
        """What must survive beyond (seed, step)."""
        return {}

    def load_state_dict(self, state: State, /) -> None:
        """Take back what `state_dict` gave."""


class SourceWrapper(Source):
    """A source that changes the batches of another: override `batches`, the rest is handed on."""

    def __init__(self, base: Source) -> None:
        self.base, self.inputs = base, base.inputs

    @property
    def examples(self) -> Mapping[str, Encoded]:
        """As the wrapped source's: a stored result is computed from them, not from the batches."""
        return self.base.examples

    def state_dict(self) -> State:
        """The wrapped source's."""
        return self.base.state_dict()

    def load_state_dict(self, state: State, /) -> None:
        """Hand it on."""
        self.base.load_state_dict(state)


class Update(Protocol):
    """How one loss becomes one change of the parameters it owns."""

    @property
    def params(self) -> Sequence[nn.Parameter]:
        """The parameters this update owns, in a fixed order."""
        ...

    def gradients(self, loss_fn: LossFn, batch: Batch, /) -> Loss:
        """Fill `.grad` of this update's own parameters, and of no others."""
        ...

    def apply(self, clock: Clock, /) -> None:
        """Change the parameters from their gradients."""
        ...

    def __call__(self, loss_fn: LossFn, batch: Batch, clock: Clock, /) -> Loss:
        """`gradients`, then `apply`."""
        ...

    def adopt(self, previous: Update, /) -> None:
        """Take over momentum and the like from the update of an earlier stage, matched by parameter name."""
        ...

    def scale_rates(self, scales: Mapping[str, float], /) -> None:
        """Multiply the learning rates of named parameters. Called at most once, before the first step."""
        ...

    def state_dict(self) -> State:
        """Everything the next step depends on, apart from the parameters themselves."""
        ...

    def load_state_dict(self, state: State, /) -> None:
        """Take back what `state_dict` gave."""
        ...


@runtime_checkable
class WithoutLevel(Protocol):
    """A part of a stage whose loss rises and falls by itself, so that a rise says nothing about the run."""

    @property
    def why_no_level(self) -> str:
        """What its loss does, as the end of the sentence "the loss ...", for who asks for an alarm on it."""
        ...


def layers(outer: object) -> Iterator[object]:
    """A wrapper, what it wraps as its `base`, and so on to the bottom."""
    while outer is not None:
        yield outer
        outer = getattr(outer, "base", None)


class UpdateWrapper:
    """An update that changes one thing of another: override `gradients` or `apply`, the rest is handed on.

    The one base class beside Technique, Hook and Source: without it every wrapper repeats six delegating methods.
    """

    def __init__(self, base: Update) -> None:
        self.base = base

    @property
    def params(self) -> Sequence[nn.Parameter]:
        """The parameters of the wrapped update."""
        return self.base.params

    def gradients(self, loss_fn: LossFn, batch: Batch) -> Loss:
        """As the wrapped update does."""
        return self.base.gradients(loss_fn, batch)

    def apply(self, clock: Clock) -> None:
        """As the wrapped update does."""
        self.base.apply(clock)

    def __call__(self, loss_fn: LossFn, batch: Batch, clock: Clock) -> Loss:
        """`gradients`, then `apply`."""
        loss = self.gradients(loss_fn, batch)
        self.apply(clock)
        return loss

    def adopt(self, previous: Update) -> None:
        """Adopt what the wrapped updates hold."""
        self.base.adopt(previous.base if isinstance(previous, UpdateWrapper) else previous)

    def scale_rates(self, scales: Mapping[str, float]) -> None:
        """As the wrapped update does."""
        self.base.scale_rates(scales)

    def state_dict(self) -> State:
        """The wrapped update's state."""
        return self.base.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Hand the state on."""
        self.base.load_state_dict(state)


class Step(Protocol):
    """Which updates one batch causes."""

    @property
    def updates(self) -> Mapping[str, Update]:
        """Every update this step makes use of, by name."""
        ...

    def __call__(self, batch: Batch, clock: Clock, /) -> Loss:
        """Make the updates of one batch; the loss is for the log."""
        ...


class Hook:
    """Acts between steps. Override what you need; nothing here may change a loss or a gradient.

    `on_start` means "about to run": it is called after a resume too.
    """

    def on_start(self, run: Run) -> None:
        """The stage is about to run its next step."""

    def on_step(self, run: Run, loss: Loss) -> None:
        """A step was made; `run.clock.step` counts it already."""

    def on_end(self, run: Run) -> None:
        """The stage has run its last step, or was stopped by a hook."""

    def state_dict(self) -> State:
        """What must survive a resume."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""


UpdateBuilder = Callable[[NamedParams], Update]
StepBuilder = Callable[["Stage[Any]"], Step]
