"""Learning-rate schedules as data: the factor on every learning rate at a clock. Those that go down once are here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from regraft.config.spec import Named
from regraft.core.values import Clock


class Schedule(Named):
    """A learning-rate schedule over one stage. In the `warmup` the rate rises from 0, or is held at `warmup_factor`.

    `warmup` is a share of the stage where it is below 1, and a number of steps from 1 on. Goyal et al., 2017, arXiv:1706.02677,
    section 2.2, have both: a low rate that is held, and one that rises.
    """

    family: ClassVar[str] = "schedule"
    remembers: ClassVar[bool] = False  # does the factor depend on validation results as well as on the clock?

    warmup: float = Field(default=0.0, ge=0)
    warmup_factor: float | None = Field(default=None, gt=0, le=1)

    @field_validator("warmup")
    @classmethod
    def _share_or_steps(cls, warmup: float) -> float:
        if warmup > 1 and warmup != int(warmup):
            raise ValueError("must be a share below 1, or a whole number of steps")
        return warmup

    @model_validator(mode="after")
    def _held_in_a_warm_up(self) -> Self:
        if self.warmup_factor is not None and not self.warmup:
            raise ValueError("`warmup_factor` is held during the warm-up; say in `warmup` how long that is")
        return self

    def __call__(self, clock: Clock) -> float:
        """The factor at `clock`; a rise is linear and its first step is not 0."""
        rising = self.rising(clock.total)
        if clock.step < rising:
            share = (clock.step + 1) / (rising + 1) if self.warmup_factor is None else self.warmup_factor
            return share * self.shape(0, max(1, clock.total - rising))
        return self.shape(clock.step - rising, max(1, clock.total - rising))

    def rising(self, total: int) -> int:
        """Steps of the warm-up in a stage of `total`."""
        return math.ceil(self.warmup * total) if self.warmup < 1 else int(self.warmup)

    def begin(self) -> Callable[[Clock], float]:
        """The factor at a clock for one run of a stage; it has a memory of its own where the schedule remembers."""
        return self

    def shape(self, step: int, total: int) -> float:
        """The factor at step 0 .. total - 1 of those after the warm-up."""
        raise NotImplementedError(f"{type(self).__name__} does not say its shape")

    def momentum(self, clock: Clock) -> float | None:
        """The momentum (Adam's beta_1) at `clock`; None leaves it as the optimizer has it."""
        return None


class Constant(Schedule):
    """The rate stays as it is; with `warmup`, after it."""

    def shape(self, step: int, total: int) -> float:
        """1."""
        return 1.0


class Linear(Schedule):
    """Down to `floor` in a straight line."""

    floor: float = Field(default=0.0, ge=0, le=1)

    def shape(self, step: int, total: int) -> float:
        """`1 - (1 - floor) step / total`."""
        return 1.0 - (1.0 - self.floor) * step / total


class Cosine(Schedule):
    """Down to `floor` along half a cosine. Loshchilov and Hutter, 2017, arXiv:1608.03983, eq. 5, without restarts."""

    floor: float = Field(default=0.0, ge=0, le=1)

    def shape(self, step: int, total: int) -> float:
        """`floor + (1 - floor) (1 + cos(pi step / total)) / 2`."""
        return self.floor + (1.0 - self.floor) * half_cosine(step / total)


class Polynomial(Schedule):
    """Down to `floor` as a power of what is left: `power` 1 is a straight line, 2 is steep first and flat at the end."""

    power: float = Field(default=2.0, gt=0)
    floor: float = Field(default=0.0, ge=0, le=1)

    def shape(self, step: int, total: int) -> float:
        """`floor + (1 - floor) (1 - step / total)^power`."""
        return self.floor + (1.0 - self.floor) * (1.0 - step / total) ** self.power


class Exponential(Schedule):
    """Down by the same ratio at every step, to `floor` at the end of the stage."""

    floor: float = Field(default=0.01, gt=0, le=1)

    def shape(self, step: int, total: int) -> float:
        """`floor^(step / total)`."""
        return self.floor ** (step / total)


class StepDecay(Schedule):
    """Multiplied by `factor` at each of the shares `at` of the steps after the warm-up."""

    at: tuple[float, ...] = (0.5, 0.75)
    factor: float = Field(default=0.1, gt=0, lt=1)

    @field_validator("at")
    @classmethod
    def _ascending(cls, at: tuple[float, ...]) -> tuple[float, ...]:
        if not at or list(at) != sorted(set(at)) or at[0] <= 0 or at[-1] >= 1:
            raise ValueError("must be ascending shares between 0 and 1, such as [0.5, 0.75]")
        return at

    def shape(self, step: int, total: int) -> float:
        """`factor` to the number of places that have been passed."""
        return self.factor ** sum(step >= round(share * total) for share in self.at)


class Power(Schedule):
    """Down as a power of the number of steps made, whatever their total: the k-th step has the factor `k^-exponent`.

    With `SGD: {lr: 0.1}` the default is the rate 0.1 / k^0.3, often used in practice. The conditions of Robbins and Monro
    (1951) for convergence, a sum of rates that is infinite and a sum of their squares that is finite, hold for exponents
    above 0.5 and up to 1, so not for the default.
    """

    exponent: float = Field(default=0.3, gt=0)

    def shape(self, step: int, total: int) -> float:
        """`(step + 1)^-exponent`."""
        return (step + 1.0) ** -self.exponent


def half_cosine(fraction: float) -> float:
    """From 1 at 0 to 0 at 1 along half a cosine."""
    return 0.5 * (1.0 + math.cos(math.pi * fraction))
