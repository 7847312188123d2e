"""Schedules that rise more than once, or that end in another than they began with."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Annotated, Literal, cast

from pydantic import Field, field_validator

from regraft.config.parse import AnySchedule
from regraft.config.spec import Named, Spec
from regraft.core.values import Clock
from regraft.errors import ConfigError
from regraft.optim.schedules import Schedule, half_cosine

Positive = Annotated[int, Field(ge=1)]


class OneCycle(Schedule):
    """Up to the full rate and down again below where it began, the momentum the other way round.

    Smith, 2018, arXiv:1803.09820, section 3; the two halves are those of a cosine, as in Smith and Topin, 2018, arXiv:1708.07120.

    Attributes:
        rise: share of the steps in which the rate goes up.
        start: the factor at the first step.
        floor: the factor at the end.
        low_momentum: the momentum where the rate is full; None leaves the momentum alone.
        high_momentum: the momentum where the rate is least.

    Example:
        ```yaml
        train: {optimizer: {SGD: {lr: 0.1, momentum: 0.9}}, schedule: {OneCycle: {rise: 0.3}}}
        ```
    """

    rise: float = Field(default=0.3, gt=0, lt=1)
    start: float = Field(default=0.04, gt=0, le=1)
    floor: float = Field(default=4e-6, ge=0, le=1)
    low_momentum: float | None = Field(default=0.85, ge=0, lt=1)
    high_momentum: float = Field(default=0.95, ge=0, lt=1)

    @field_validator("warmup")
    @classmethod
    def _rises_itself(cls, warmup: float) -> float:
        return _none(warmup, "the rise of the cycle is its warm-up")

    def shape(self, step: int, total: int) -> float:
        """From `start` to 1 to `floor`."""
        up, share = self._where(step, total)
        low = self.start if up else self.floor
        return low + (1.0 - low) * (1.0 - half_cosine(share) if up else half_cosine(share))

    def momentum(self, clock: Clock) -> float | None:
        """From `high_momentum` to `low_momentum` and back."""
        if self.low_momentum is None:
            return None
        up, share = self._where(clock.step, clock.total)
        height = 1.0 - half_cosine(share) if up else half_cosine(share)
        return self.high_momentum + (self.low_momentum - self.high_momentum) * height

    def _where(self, step: int, total: int) -> tuple[bool, float]:
        """Is the rate going up, and how far along is it? The last step is at the end of the way down."""
        top = self.rise * total - 1.0
        if step <= top and top > 0:
            return True, step / top
        return False, min(1.0, (step - top) / max(1.0, total - 1.0 - top))


class Cyclic(Schedule):
    """Up and down between `low` and the full rate, `cycles` times. Smith, 2017, arXiv:1506.01186.

    Attributes:
        cycles: ups and downs in the stage.
        low: the factor in the valleys.
        form: a `triangular` wave, or a `cosine`.
        shrink: the height of the peaks over the valleys is multiplied by this once a cycle; 0.5 is the paper's `triangular2`.
        smooth: the shrinking goes on at every step instead of once a cycle, which is the paper's `exp_range`.
    """

    cycles: int = Field(default=4, ge=1)
    low: float = Field(default=0.1, ge=0, lt=1)
    form: Literal["triangular", "cosine"] = "triangular"
    shrink: float = Field(default=1.0, gt=0, le=1)
    smooth: bool = False

    def shape(self, step: int, total: int) -> float:
        """`low + (1 - low) shrink^k wave`, with k the cycles that are over."""
        at = self.cycles * step / total
        inside = at - math.floor(at)
        wave = 1.0 - abs(2.0 * inside - 1.0) if self.form == "triangular" else half_cosine(2.0 * inside + 1.0)
        return self.low + (1.0 - self.low) * self.shrink ** (at if self.smooth else math.floor(at)) * wave


class WarmRestarts(Schedule):
    """Down along half a cosine and back to the full rate at once, again and again; each way down is `growth` times as long.

    SGDR: Loshchilov and Hutter, 2017, arXiv:1608.03983, eq. 5.

    Attributes:
        cycles: ways down in the stage.
        growth: length of a way down over the one before.
        floor: the factor at the end of each.
    """

    cycles: int = Field(default=3, ge=1)
    growth: float = Field(default=2.0, ge=1)
    floor: float = Field(default=0.0, ge=0, le=1)

    def shape(self, step: int, total: int) -> float:
        """The cosine of the way down that the step is on."""
        sums = list(accumulate(self.growth**k for k in range(self.cycles)))
        ends = [round(total * reached / sums[-1]) for reached in sums]
        start = max((end for end in ends if end <= step), default=0)
        end = min((end for end in ends if end > step), default=total)
        return self.floor + (1.0 - self.floor) * half_cosine((step - start) / max(1, end - start))


class Part(Spec):
    """A schedule and how long it lasts: a `share` of the stage or a number of `steps`; the last part takes what is left.

    `scale` multiplies its factors.
    """

    schedule: AnySchedule
    share: float | None = Field(default=None, gt=0, lt=1)
    steps: Positive | None = None
    scale: float = Field(default=1.0, gt=0)

    @field_validator("schedule")
    @classmethod
    def _forgets(cls, schedule: Named) -> Named:
        if cast(Schedule, schedule).remembers:
            raise ValueError(
                f"{type(schedule).__name__} acts on validation results, so it can be no part of a Sequence"
            )
        return schedule

    def length(self, total: int) -> int | None:
        """Steps of a stage of `total`; None for what is left."""
        return self.steps if self.share is None else max(1, round(self.share * total))


class Sequence(Schedule):
    """Schedules one after the other, each over its own part of the stage, as if that part were all of it.

    Attributes:
        parts: each a schedule and how long it lasts, as a `share` of the stage or in `steps`; the last takes what is left.
            `scale` multiplies its factors.

    Example:
        ```yaml
        train:
          schedule:
            Sequence:
              parts:
                - {schedule: {Linear: {floor: 1.0}}, steps: 100, scale: 0.1}
                - {schedule: Constant, share: 0.5}
                - {schedule: Cosine}
        ```
    """

    parts: tuple[Part, ...] = Field(min_length=1)

    @field_validator("warmup")
    @classmethod
    def _in_a_part(cls, warmup: float) -> float:
        return _none(warmup, "give it to the first part")

    @field_validator("parts")
    @classmethod
    def _last_is_open(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        for part in parts[:-1]:
            if (part.share is None) == (part.steps is None):
                raise ValueError("each part but the last needs either `share` or `steps`")
        if parts[-1].share is not None or parts[-1].steps is not None:
            raise ValueError("the last part takes the steps that are left; leave `share` and `steps` out there")
        return parts

    def shape(self, step: int, total: int) -> float:
        """The factor of the part that the step is in.

        Raises:
            ConfigError: the parts before the last take all of the stage.
        """
        part, inside = self._part(Clock(step, total))
        return part.scale * cast(Schedule, part.schedule)(inside)

    def momentum(self, clock: Clock) -> float | None:
        """That of the part that the step is in."""
        part, inside = self._part(clock)
        return cast(Schedule, part.schedule).momentum(inside)

    def _part(self, clock: Clock) -> tuple[Part, Clock]:
        lengths = [part.length(clock.total) or 0 for part in self.parts[:-1]]
        left = clock.total - sum(lengths)
        if left < 1:
            raise ConfigError(
                f"Sequence: the parts before the last take {sum(lengths):,} steps of {clock.total:,}, so none is left for it"
            )
        start = 0
        for part, length in zip(self.parts, [*lengths, left], strict=True):
            if clock.step < start + length:
                return part, Clock(clock.step - start, length)
            start += length
        return self.parts[-1], Clock(left, left)  # the stage is over


def _none(warmup: float, instead: str) -> float:
    if warmup:
        raise ValueError(f"must be left out: {instead}")
    return warmup
