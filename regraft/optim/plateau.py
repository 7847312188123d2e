"""Schedules that act on validation results: the rate falls, or starts again, where nothing improves any more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

from pydantic import Field, field_validator

from regraft.config.parse import AnySchedule
from regraft.config.spec import Named
from regraft.core.values import Clock
from regraft.optim.schedules import Schedule


class OnPlateau(Schedule):
    """A schedule that counts validation results without progress.

    Attributes:
        watch: `loss` is to fall, `score` to rise.
        patience: results without progress that are waited for; the one after them counts as a plateau.
        threshold: progress by less than this share of the best result is none.
    """

    family: ClassVar[str] = "schedule"  # it is no member of it: a recipe names one of those below
    remembers: ClassVar[bool] = True

    watch: Literal["loss", "score"] = "loss"
    patience: int = Field(default=2, ge=0)
    threshold: float = Field(default=1e-4, ge=0)

    def improves(self, value: float, best: float) -> bool:
        """Is a result progress over the best one so far?"""
        if not math.isfinite(best):
            return True
        if self.watch == "loss":
            return value < best - self.threshold * abs(best)
        return value > best + self.threshold * abs(best)


class ReduceLROnPlateau(OnPlateau):
    """Multiplied by `factor` whenever `patience` validation results in a row have brought no progress, and once more.

    As torch.optim.lr_scheduler.ReduceLROnPlateau, with its relative threshold; results are those of `validate: {times: ...}`,
    so let that be several times the patience.

    Attributes:
        watch: `loss` is to fall, `score` to rise.
        patience: results without progress that are waited for; at the one after them the rate falls.
        threshold: progress by less than this share of the best result is none.
        factor: what the rate is multiplied by.
        cooldown: results after a fall that are not counted.
        floor: the least factor.

    Example:
        ```yaml
        train: {schedule: {ReduceLROnPlateau: {factor: 0.3, patience: 1}}}
        validate: {times: 12}
        ```
    """

    factor: float = Field(default=0.1, gt=0, lt=1)
    cooldown: int = Field(default=0, ge=0)
    floor: float = Field(default=0.0, ge=0, lt=1)

    def shape(self, step: int, total: int) -> float:
        """1, before any result is known."""
        return 1.0

    def begin(self) -> Falling:
        """The factor of a run, at first 1."""
        return Falling(self)


class RestartOnPlateau(OnPlateau):
    """A schedule that starts again from its beginning, over the steps that are left, where validation shows no progress.

    Warm restarts (Loshchilov and Hutter, 2017, arXiv:1608.03983) when they are called for rather than at given steps, for which
    there is `WarmRestarts`.

    Attributes:
        watch: `loss` is to fall, `score` to rise.
        patience: results without progress that are waited for; at the one after them the schedule starts again.
        threshold: progress by less than this share of the best result is none.
        schedule: what starts again.

    Example:
        ```yaml
        train: {schedule: {RestartOnPlateau: {schedule: Cosine, patience: 1}}}
        validate: {times: 12}
        ```
    """

    schedule: AnySchedule = Field(default="Cosine")  # pyright: ignore[reportAssignmentType]

    @field_validator("schedule")
    @classmethod
    def _forgets(cls, schedule: Named) -> Named:
        if cast(Schedule, schedule).remembers:
            raise ValueError(f"{type(schedule).__name__} acts on validation results itself")
        return schedule

    def shape(self, step: int, total: int) -> float:
        """The schedule itself, before any result is known."""
        return cast(Schedule, self.schedule)(Clock(step, total))

    def begin(self) -> Restarting:
        """The factor of a run that has not started again yet."""
        return Restarting(self)


class Falling:
    """The factor of ReduceLROnPlateau over one run."""

    def __init__(self, spec: ReduceLROnPlateau) -> None:
        self.spec = spec
        self.best, self.waited, self.resting, self.factor = math.nan, 0, 0, 1.0

    def __call__(self, clock: Clock) -> float:
        """The factor at `clock`."""
        return self.spec(clock) * self.factor

    def judged(self, result: Mapping[str, float]) -> None:
        """Count a validation result; the rate falls where too many have brought nothing."""
        value = result[self.spec.watch]
        if self.spec.improves(value, self.best):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        if self.resting:
            self.resting, self.waited = self.resting - 1, 0
        if self.waited > self.spec.patience:
            self.factor = max(self.factor * self.spec.factor, self.spec.floor)
            self.waited, self.resting = 0, self.spec.cooldown

    def state_dict(self) -> dict[str, Any]:
        """The counts and the factor."""
        best = None if math.isnan(self.best) else self.best
        return {"best": best, "waited": self.waited, "resting": self.resting, "factor": self.factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.best = math.nan if state["best"] is None else state["best"]
        self.waited, self.resting, self.factor = state["waited"], state["resting"], state["factor"]


class Restarting:
    """The factor of RestartOnPlateau over one run."""

    def __init__(self, spec: RestartOnPlateau) -> None:
        self.spec = spec
        self.best, self.waited = math.nan, 0
        self.begun, self.now = 0, 0  # first step since the last restart, and steps made

    def __call__(self, clock: Clock) -> float:
        """The factor at `clock`, counted from the last restart."""
        self.now = clock.step + 1
        if not self.begun:
            return self.spec(clock)
        return self.spec.shape(clock.step - self.begun, max(1, clock.total - self.begun))

    def judged(self, result: Mapping[str, float]) -> None:
        """Count a validation result; the schedule starts again where too many have brought nothing."""
        value = result[self.spec.watch]
        if self.spec.improves(value, self.best):
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited > self.spec.patience:
            self.begun, self.waited = self.now, 0

    def state_dict(self) -> dict[str, Any]:
        """The counts and the place of the last restart."""
        best = None if math.isnan(self.best) else self.best
        return {"best": best, "waited": self.waited, "begun": self.begun, "now": self.now}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.best = math.nan if state["best"] is None else state["best"]
        self.waited, self.begun, self.now = state["waited"], state["begun"], state["now"]
