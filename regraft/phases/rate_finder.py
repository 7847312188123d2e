"""The learning-rate range test: a short run in which the rate grows at every step, and what its losses say about the rate.

Smith, 2017, arXiv:1506.01186, section 3.3. The rate grows by a constant factor here, as is usual since, and losses are smoothed
by a running mean without bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from pydantic import Field

from regraft.config.recipe import RecipeSpec
from regraft.core import Hook, Loss, Recipe, Run, fit
from regraft.errors import RunError
from regraft.optim.optimizers import Optimizer
from regraft.optim.schedules import Schedule
from regraft.phases.build import assemble

SMOOTHING = 0.9  # of the running mean of the losses
TOO_HIGH = 4.0  # times the least smoothed loss so far: the run has left the ground and ends
FEWEST = 10  # losses that say something
FALLEN = 0.98  # the least smoothed loss over an early one, for it to have fallen
BELOW_LOWEST = 5.0  # the suggestion lies this far below the rate of the least loss


class Ramp(Schedule):
    """Up by a constant factor at every step, from the rate itself to `top` times it."""

    top: float = Field(gt=1)

    def shape(self, step: int, total: int) -> float:
        """`top^(step / (total - 1))`."""
        return self.top ** (step / max(1, total - 1))


class StopAbove(Hook):
    """Ends the stage once the smoothed loss has risen far above its least, and keeps the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step(self, run: Run, loss: Loss) -> None:
        """Read the loss; a range test is short, so the wait for the device does not matter."""
        self.losses.append(float(loss.value))
        smooth = smoothed(self.losses)
        if smooth[-1] > TOO_HIGH * min(smooth):
            run.stop("the loss rises")


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """What a range test found."""

    rates: tuple[float, ...]  # of each step, rising
    losses: tuple[float, ...]
    smooth: tuple[float, ...]
    lowest: float  # the rate at which the smoothed loss is least: from about here on steps bounce
    suggestion: float


def range_test(spec: RecipeSpec, *, low: float = 1e-6, high: float = 1.0, steps: int = 100) -> RangeTest:
    """Run the first stage of a recipe for `steps` steps, from rate `low` to `high`, on a model of its own.

    Args:
        spec: a recipe to train; its schedule is not used.
        low: rate of the first step.
        high: rate of the last step.
        steps: of the test; it ends before where the loss has risen far above its least.

    Raises:
        ConfigError: the recipe has no stage, or cannot be assembled.
        RunError: the loss rises from the first steps on, or does not fall at all.
    """
    optimizer = cast(Optimizer, spec.train.optimizer).replaced(lr=low)
    train = spec.train.replaced(optimizer=optimizer, schedule=Ramp(top=high / low))
    stages = tuple(stage.replaced(steps=steps) for stage in spec.stages[:1])
    losses = losses_of(assemble(spec.replaced(train=train, stages=stages)).recipe, seed=spec.seed)
    rates = [low * (high / low) ** (step / (steps - 1)) for step in range(len(losses))]
    return judged(rates, losses)


def losses_of(recipe: Recipe, *, seed: int = 0) -> list[float]:
    """The losses of a recipe whose rate rises, up to where they have risen far above the least.

    Raises:
        RunError: the first steps are not finite.
    """
    watch = StopAbove()
    try:
        fit(recipe, seed=seed, hooks=(watch,), log_every=recipe.stages[0].steps)
    except RunError:
        if len(watch.losses) < FEWEST:  # far too high a rate ends in nan, which is what the test looks for
            raise
    return watch.losses


def judged(rates: Sequence[float], losses: Sequence[float]) -> RangeTest:
    """What the losses of a ramp say.

    The suggestion is a fifth of the rate at which the smoothed loss is least, between the third and the tenth that are usual:
    tests/phases/test_rate_finder.py holds it to a factor of 10 of the best rate of a grid. The rate at which the loss falls
    fastest, which is used as well, follows the noise of the first steps.

    Raises:
        RunError: there are too few losses, or they never fall.
    """
    finite = [(rate, loss) for rate, loss in zip(rates, losses, strict=True) if math.isfinite(loss)]
    if len(finite) < FEWEST:
        raise RunError(
            f"the loss left the ground after {len(finite)} steps; begin the range test at a lower rate than {rates[0]:g}"
        )
    rates, losses = [rate for rate, _ in finite], [loss for _, loss in finite]
    smooth = smoothed(losses)
    lowest = min(range(len(smooth)), key=smooth.__getitem__)
    if lowest < FEWEST or smooth[lowest] > FALLEN * smooth[FEWEST - 1]:
        raise RunError(
            f"the loss does not fall between the rates {rates[0]:g} and {rates[-1]:g}; widen the range, take more steps, or look "
            "at the data"
        )
    return RangeTest(
        rates=tuple(rates),
        losses=tuple(losses),
        smooth=tuple(smooth),
        lowest=rates[lowest],
        suggestion=float(f"{rates[lowest] / BELOW_LOWEST:.1e}"),
    )


def smoothed(losses: Sequence[float]) -> list[float]:
    """Running means that give the past `SMOOTHING` of the weight, without the bias of a start at 0."""
    mean, out = 0.0, list[float]()
    for count, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        out.append(mean / (1 - SMOOTHING**count))
    return out
