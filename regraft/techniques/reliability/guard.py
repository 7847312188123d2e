"""Guard: a step that must not be made is skipped, or the run goes on from the last good weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from regraft.core import Batch, Clock, Hook, Loss, OneUpdate, Recipe, Run, Stage, Step, Technique, Update, UpdateWrapper
from regraft.core.finite import Trouble, bad_weights, modules_of, weights_are_finite
from regraft.core.guard import found
from regraft.core.protocols import LossFn, NamedParams, State, StepBuilder, UpdateBuilder, WithoutLevel, layers
from regraft.core.stage import each_stage
from regraft.core.state import run_state
from regraft.errors import Conflict, RunError

WARM_UP = 20  # losses seen before one can be a spike
RATE = 0.02  # of the running means: they remember about 50 steps
STRAYS = 10.0  # mean deviations that a spike is above the running mean at least


# ---- spikes


class Level:
    """The level of a loss and how far it strays from it, as running means, and the level it had in the beginning."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.count, self.mean, self.deviation, self.start = 0, 0.0, 0.0, 0.0

    def is_spike(self, value: float) -> bool:
        """Is it above `factor` times the running mean, far outside of what is usual, and above where the stage began?

        The second keeps noisy losses, and those around 0, from being taken for spikes; the third a hard batch late in training,
        when the loss of all others is next to nothing.
        """
        if self.count < WARM_UP:
            return False
        least = max(self.factor * abs(self.mean), self.mean + STRAYS * self.deviation, self.start)
        return value > least

    def take(self, value: float) -> None:
        """Count the loss of a step that was made."""
        rate = max(RATE, 1 / (self.count + 1))
        if self.count:
            self.deviation += rate * (abs(value - self.mean) - self.deviation)
        self.mean += rate * (value - self.mean)
        self.start = self.mean if self.count < WARM_UP else self.start
        self.count += 1

    def state_dict(self) -> State:
        """Its four numbers."""
        return {"count": self.count, "mean": self.mean, "deviation": self.deviation, "start": self.start}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        self.count, self.mean, self.deviation, self.start = (state[k] for k in ("count", "mean", "deviation", "start"))


class Levelled(UpdateWrapper):
    """The wrapped update, not applied where its loss or its gradient's norm is a spike; both are read from the device."""

    def __init__(self, base: Update, level: Level | None, gradient: Level | None) -> None:
        super().__init__(base)
        self.level, self.gradient, self.value = level, gradient, torch.zeros(())

    def gradients(self, loss_fn: LossFn, batch: Batch) -> Loss:
        """As the wrapped update does."""
        loss = self.base.gradients(loss_fn, batch)
        self.value = loss.value
        return loss

    def apply(self, clock: Clock) -> None:
        """Change the parameters.

        Raises:
            Trouble: the loss or the norm of the gradient, before clipping, is a spike; nothing has been changed.
        """
        norm = self._norm() if self.gradient is not None else 0.0
        seen = [("the loss", self.level, float(self.value)), ("the norm of the gradient", self.gradient, norm)]
        kept = [(what, level, value) for what, level, value in seen if level is not None and math.isfinite(value)]
        for what, level, value in kept:
            if level.is_spike(value):
                raise Trouble(f"{what} jumped to {value:.4g} from a running mean of {level.mean:.4g}")
        self.base.apply(clock)  # which knows what to do about numbers that are not finite
        for _, level, value in kept:
            level.take(value)

    def _norm(self) -> float:
        grads = [p.grad for p in self.params if p.grad is not None]
        return float(nn.utils.get_total_norm(grads)) if grads else 0.0

    def state_dict(self) -> State:
        """The wrapped update's state and the levels of the loss and of the gradient's norm."""
        levels = {name: level.state_dict() for name, level in self._levels().items()}
        return {"base": self.base.state_dict(), **levels}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        self.base.load_state_dict(state["base"])
        for name, level in self._levels().items():
            level.load_state_dict(state[name])

    def _levels(self) -> dict[str, Level]:
        found = {"level": self.level, "gradient": self.gradient}
        return {name: level for name, level in found.items() if level is not None}


@dataclass(frozen=True)
class Levelling:
    """Builds an update and wraps it as a `Levelled`."""

    base: UpdateBuilder
    loss: float | None  # factors
    gradient: float | None

    def __call__(self, params: NamedParams) -> Update:
        """The update of these parameters."""
        level, gradient = (None if factor is None else Level(factor) for factor in (self.loss, self.gradient))
        return Levelled(self.base(params), level, gradient)


def without_level(stage: Stage[Any]) -> str:
    """Why the losses of a stage cannot be told from spikes; nothing where they can."""
    if stage.source.state_dict():
        return "is of rollouts drawn from the weights of their step"
    return next((layer.why_no_level for layer in layers(stage.objective) if isinstance(layer, WithoutLevel)), "")


# ---- what was there before


class Buffers:
    """The buffers of some modules as they were when `keep` was called last: a forward pass changes running statistics."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.places = [
            (module, key) for module in modules for key, buffer in module._buffers.items() if buffer is not None
        ]
        self.kept: list[tuple[Tensor, int, Tensor] | None] = [None] * len(self.places)

    def keep(self) -> None:
        """Copy what may have changed since the last time."""
        for index, (module, key) in enumerate(self.places):
            buffer, known = cast(Tensor, module._buffers[key]), self.kept[index]
            counted = not key.startswith("running_")  # the kernels of batch normalisation do not count their writes
            if known is None or not counted or known[0] is not buffer or known[1] != buffer._version:
                self.kept[index] = buffer, buffer._version, buffer.clone()

    @torch.no_grad()
    def restore(self) -> None:
        """Put the values back."""
        for (module, key), kept in zip(self.places, self.kept, strict=True):
            if kept is not None:
                module._buffers[key] = kept[0].copy_(kept[2])
        self.kept = [None] * len(self.places)


def copied(run: Run, guard: Hook, *, hooks: bool) -> State:
    """Weights, buffers, optimizer state and, if asked for, what the other hooks hold, as copies."""
    state = run_state(run)
    kept = [saved if hooks and hook is not guard else {} for hook, saved in zip(run.hooks, state["hooks"], strict=True)]
    chosen = {key: state[key] for key in ("model", "stage_model", "objective", "updates")}
    return cast(State, cloned(chosen | {"hooks": kept}))


def put_back(run: Run, guard: Hook, state: State, *, hooks: bool) -> None:
    """Put back what `copied` gave; what the other hooks hold only if asked for."""
    state, stage = cast(State, cloned(state)), run.stage
    run.recipe.model.load_state_dict(state["model"])
    if state["stage_model"]:
        stage.model.load_state_dict(state["stage_model"], strict=False)
    if isinstance(stage.objective, nn.Module):
        stage.objective.load_state_dict(state["objective"])
    for name, update in run.step.updates.items():
        update.load_state_dict(state["updates"][name])
    for hook, saved in zip(run.hooks, state["hooks"], strict=True) if hooks else ():
        if hook is not guard:
            hook.load_state_dict(saved)


def cloned(value: object) -> object:
    """Nested dicts and lists with every tensor copied."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: cloned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [cloned(item) for item in value]
    return value


# ---- the step and the hook


class Guarding(Hook):
    """Answers the troubles of a stage's steps, and counts them."""

    def __init__(self, spec: Guard) -> None:
        self.spec = spec
        self.run: Run | None = None  # that the step is part of, once it has started
        self.refused = 0  # steps of this stage that were not made
        self.recent = 0  # of them, those since the last `every` good steps in a row
        self.calm = 0  # good steps in a row
        self.good: State = {}  # the copy that is rolled back to,
        self.good_step = 0  # and the step it is of
        self.said = ""  # of the step being run
        self.buffers: Buffers | None = None
        self.before: State = {}

    def on_start(self, run: Run) -> None:
        """Make the first copy."""
        self.run = run
        modules = modules_of({"model": run.stage.model, "objective": run.stage.objective})
        self.buffers = Buffers([module for _, module in modules])
        if self.spec.on_trouble == "roll_back" and not self.good:
            self.good, self.good_step = copied(run, self, hooks=True), run.clock.step

    def prepare(self, run: Run, *, several: bool) -> None:
        """Copy what a step that is not made would have changed: buffers, and all else where it makes several updates."""
        if self.spec.on_trouble == "skip":
            if several:
                self.before = copied(run, self, hooks=False)
            elif self.buffers is not None:
                self.buffers.keep()
        elif self.calm and run.clock.step % self.spec.every == 0:
            self.good, self.good_step = copied(run, self, hooks=True), run.clock.step

    def answer(self, run: Run, trouble: Trouble, *, several: bool) -> Loss:
        """Undo the step; its loss, which is not a number.

        Raises:
            RunError: the weights were not finite before the step, and nothing is there to roll back to; or there were too many.
        """
        finding = found(run, trouble)
        if self.spec.on_trouble == "skip" and bad_weights(run) and not several:
            raise RunError(f"{finding.text}; {finding.advice}") from None
        self._count(finding.text)
        if self.spec.on_trouble == "roll_back":
            self._roll_back(run, finding.text)
        else:
            if several:
                put_back(run, self, self.before, hooks=False)
            elif self.buffers is not None:
                self.buffers.restore()
            self.said = f"{finding.text}; the step was skipped"
        for update in run.step.updates.values():
            for parameter in update.params:
                parameter.grad = None
        run.passed_over = True
        return Loss(torch.tensor(float("nan")))

    def _count(self, text: str) -> None:
        self.refused, self.recent, self.calm = self.refused + 1, self.recent + 1, 0
        if self.recent > self.spec.most:
            raise RunError(
                f"{text}; more than {self.spec.most} steps could not be made with fewer than {self.spec.every} good ones in a "
                "row between them (Guard.most), so the run ends: lower the learning rate or look at the data"
            ) from None

    def _roll_back(self, run: Run, text: str) -> None:
        put_back(run, self, self.good, hooks=True)
        self.said = f"{text}; weights and optimizer are again those after step {self.good_step:,}"

    def on_step(self, run: Run, loss: Loss) -> None:
        """Say what was done; where it can be rolled back, see whether the step left every weight finite."""
        if not self.said and self.spec.on_trouble == "roll_back" and not weights_are_finite(run):
            text = f"stage {run.stage.name!r}: a weight is not finite after step {run.clock.step:,}"
            self._count(text)
            self._roll_back(run, text)
        if self.said:
            run.note(self.said)
            self.said = ""
            return
        self.calm += 1
        if self.calm >= self.spec.every:
            self.recent = 0

    def on_end(self, run: Run) -> None:
        """Say how many steps were not made."""
        if self.refused:
            run.note(f"stage {run.stage.name!r}: {self.refused} of {run.clock.step:,} steps were not made (Guard)")

    def state_dict(self) -> State:
        """The counts and the copy."""
        return {
            "refused": self.refused, "recent": self.recent, "calm": self.calm, "good": self.good, "good_step": self.good_step
        }  # fmt: skip

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        self.refused, self.recent, self.calm = state["refused"], state["recent"], state["calm"]
        self.good, self.good_step = cast(State, cloned(state["good"])), state["good_step"]


class GuardedStep:
    """The wrapped step, whose troubles are answered."""

    def __init__(self, base: Step, guarding: Guarding) -> None:
        self.base, self.guarding, self.several = base, guarding, not isinstance(base, OneUpdate)

    @property
    def updates(self) -> Mapping[str, Update]:
        """The wrapped step's."""
        return self.base.updates

    def __call__(self, batch: Batch, clock: Clock) -> Loss:
        """The step, or none; outside of a run it is not guarded."""
        run = self.guarding.run
        if run is None:
            return self.base(batch, clock)
        self.guarding.prepare(run, several=self.several)
        try:
            return self.base(batch, clock)
        except Trouble as trouble:
            return self.guarding.answer(run, trouble, several=self.several)


@dataclass(frozen=True)
class GuardedSteps:
    """Builds a step and wraps it as a `GuardedStep`."""

    base: StepBuilder
    guarding: Guarding

    def __call__(self, stage: Stage[Any]) -> Step:
        """The step of a stage."""
        return GuardedStep(self.base(stage), self.guarding)


class Guard(Technique):
    """Goes on after a step whose loss or gradients are not finite, or whose loss is a spike, instead of ending the run.

    Without it such a step ends the run before it changes a parameter. "skip" leaves weights, optimizer state and running
    statistics bit for bit as they were. "roll_back" goes on from a copy made every `every` steps, with the weights, the
    optimizer and what hooks (averages, best results) held then. In either case the clock moves on: the batch is not drawn again,
    the learning-rate schedule goes by the steps of the stage, and hooks see the step. Skipping 10 steps at most is what
    KempnerForge does; leaving out the batches before a spike as well, as rolling back does here, is the remedy of Chowdhery et
    al., 2022, arXiv:2204.02311, section 5.1. Each such step is a note in the report and a line in events.jsonl.

    Use it when a run is long and rare batches break it: a broken file, an overflow in low precision, a learning rate at its
    limit. Not as a cure for a learning rate that is too high: where the weights themselves have gone bad, skipping is refused.
    The copy of "roll_back" takes the memory of the weights and the optimizer state again, and is part of every checkpoint.

    Attributes:
        on_trouble: what happens with such a step; "stop" ends the run with a sentence, as without Guard.
        most: such steps, with fewer than `every` good ones in a row between them, before the run ends.
        every: steps between two copies, and good steps in a row after which the count of `most` begins again.
        spike: a loss is one above this many times its running mean, if it also is far outside of what it strays by and above
            where the stage began; default none is. 3 is usual. Refused beside rollouts and learned variances, whose loss has no
            level. It reads the loss from the device in every step, as "roll_back" reads whether the weights are finite.
        gradient_spike: the same of the norm of the gradient before clipping, which tells that gradients explode, as in recurrent
            and very deep networks, a step before the loss does. 10 is usual; clipping (`train.max_norm`) is the cure.

    Example:
        ```yaml
        techniques:
          - Guard: {on_trouble: roll_back, most: 3, spike: 3.0}
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"update", "step", "hooks"})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "outer"  # around whatever a step is made of

    on_trouble: Literal["stop", "skip", "roll_back"] = "skip"
    most: int = Field(default=10, ge=1)
    every: int = Field(default=50, ge=1)
    spike: float | None = Field(default=None, gt=1)
    gradient_spike: float | None = Field(default=None, gt=1)

    def apply(self, recipe: Recipe) -> Recipe:
        """Guard every stage's step."""
        return each_stage(recipe, self._guarded)

    def _guarded(self, stage: Stage[Any]) -> Stage[Any]:
        if self.spike is not None and (why := without_level(stage)):
            raise Conflict(
                f"Guard.spike: the loss of stage {stage.name!r} {why}, so it has no level to jump from; leave spike out"
            )
        if self.spike is not None or self.gradient_spike is not None:
            stage = replace(stage, update=Levelling(stage.update, self.spike, self.gradient_spike))
        if self.on_trouble == "stop":
            return stage
        guarding = Guarding(self)
        return replace(stage, step=GuardedSteps(stage.step, guarding), hooks=(guarding, *stage.hooks))
