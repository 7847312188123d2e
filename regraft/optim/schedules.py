"""Learning-rate schedules as data: the factor on every learning rate at a clock, in [0, 1]."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from regraft.config.spec import Named
from regraft.core.values import Clock


class Schedule(Named):
    """A learning-rate schedule over one stage. `warmup` is the share of the stage in which the rate rises from 0."""

    family: ClassVar[str] = "schedule"

    warmup: float = Field(default=0.0, ge=0, lt=1)

    def __call__(self, clock: Clock) -> float:
        """The factor at `clock`; the rise is linear and its first step is not 0."""
        rising = math.ceil(self.warmup * clock.total)
        if clock.step < rising:
            return (clock.step + 1) / (rising + 1)
        return self.shape((clock.step - rising) / max(1, clock.total - rising))

    def shape(self, fraction: float) -> float:
        """The factor after the warm-up, at the share `fraction` in [0, 1) of what is left."""
        raise NotImplementedError(f"{type(self).__name__} does not say its shape")


class Constant(Schedule):
    """The rate stays as it is."""

    def shape(self, fraction: float) -> float:
        """1."""
        return 1.0


class Linear(Schedule):
    """Down to `floor` in a straight line."""

    floor: float = Field(default=0.0, ge=0, le=1)

    def shape(self, fraction: float) -> float:
        """`1 - (1 - floor) fraction`."""
        return 1.0 - (1.0 - self.floor) * fraction


class Cosine(Schedule):
    """Down to `floor` along half a cosine. Loshchilov and Hutter, 2017, arXiv:1608.03983, eq. 5, without restarts."""

    floor: float = Field(default=0.0, ge=0, le=1)

    def shape(self, fraction: float) -> float:
        """`floor + (1 - floor) (1 + cos(pi fraction)) / 2`."""
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * fraction))
