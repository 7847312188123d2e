"""HypergradientLR: the learning rate descends too, along the derivative of the loss with respect to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from regraft.core import Batch, Clock, Hook, Loss, Recipe, Run, Stage, Technique, Update, UpdateWrapper, each_stage
from regraft.core.descent import Descent
from regraft.core.protocols import LossFn, NamedParams, State, UpdateBuilder, layers
from regraft.errors import ConfigError

WINDOW, TURNS = (
    20,
    0.8,
)  # steps that are looked at, and the share of them in which the sign may turn before it is unstable
MOST = 2.0  # factor by which one step may change the rate


def hypergradient(gradients: Sequence[Tensor], steps: Sequence[Tensor], rate: float) -> float:
    """dL/d rate at weights that a step of this rate has led to: minus the inner product of gradient and step, over the rate.

    Baydin et al., 2018, arXiv:1703.04782, eq. 5: the step is what was taken off the weights, so for plain gradient descent it is
    the rate times the gradient before. It holds for every optimizer whose step is proportional to its rate.
    """
    return -_inner(gradients, steps) / rate


def _inner(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return float(torch.stack([(a * b).sum(dtype=torch.float64) for a, b in zip(one, other, strict=True)]).sum())


class DescendingRate(UpdateWrapper):
    """The wrapped update, whose rates are all multiplied by `scale`, which follows the hypergradient."""

    def __init__(self, base: Update, spec: HypergradientLR) -> None:
        super().__init__(base)
        self.spec, self.beta = spec, spec.beta
        self.scale = 1.0
        self.steps: list[Tensor] = []  # what the last step took off each weight; empty before the first
        self.signs: list[int] = []  # of the last hypergradients
        self.said: list[str] = []  # sentences for the report that were not handed over yet
        self.held = 0  # steps in which the rate was kept within its bounds
        found = next((each for each in layers(base) if isinstance(each, Descent)), None)
        if found is None:
            raise ConfigError("HypergradientLR: the stage's update has no optimizer whose rate could be changed")
        self.descent = found

    def gradients(self, loss_fn: LossFn, batch: Batch) -> Loss:
        """As the wrapped update; `rate_factor` in the log is what the learning rate is multiplied by."""
        loss = self.base.gradients(loss_fn, batch)
        return Loss(
            loss.value, loss.weight, {**loss.terms, "rate_factor": torch.tensor(self.scale, device=loss.value.device)}
        )

    def apply(self, clock: Clock) -> None:
        """Change the rate by what the new gradient says of the last step, then make a step."""
        if self.steps:
            self._follow(clock)
        before = [p.detach().clone() for p in self.params]
        self.base.apply(clock)
        self.steps = [old - p.detach() for old, p in zip(before, self.params, strict=True)]

    def _follow(self, clock: Clock) -> None:
        pairs = [(p.grad, step) for p, step in zip(self.params, self.steps, strict=True) if p.grad is not None]
        gradients, steps = [g for g, _ in pairs], [step for _, step in pairs]
        lengths = math.sqrt(_inner(gradients, gradients) * _inner(steps, steps)) if pairs else 0.0
        if not math.isfinite(lengths) or lengths == 0.0:
            return  # a gradient that is not finite is refused by the update itself
        slope = hypergradient(gradients, steps, self.scale)
        if self.spec.rule == "relative":
            wanted = self.scale * (1 - self.beta * slope * self.scale / lengths)
        else:
            start = max(self.descent.base_rates) / self.scale
            wanted = self.scale - self.beta * slope / start**2
        self._watch_signs(slope, clock)
        self._move(wanted, clock)

    def _watch_signs(self, slope: float, clock: Clock) -> None:
        """Halve beta where the hypergradient turns its sign nearly every step: the rate would swing and not settle."""
        self.signs = [*self.signs, (slope > 0) - (slope < 0)][-WINDOW:]
        turns = sum(a * b < 0 for a, b in zip(self.signs, self.signs[1:], strict=False))
        if len(self.signs) == WINDOW and turns >= TURNS * (WINDOW - 1):
            self.beta, self.signs = self.beta / 2, []
            self.said.append(
                f"HypergradientLR is unstable: the hypergradient turned its sign in {turns} of the {WINDOW} steps before step "
                f"{clock.step + 1:,}, so beta is halved to {self.beta:.3g}"
            )

    def _move(self, wanted: float, clock: Clock) -> None:
        """Multiply all rates so that their factor is `wanted`, within a step's most and within the bounds."""
        limit = self.spec.limit
        bounded = min(max(wanted, self.scale / MOST, 1 / limit), self.scale * MOST, limit)
        if not 1 / limit <= wanted <= limit:
            self.held += 1
            if self.held == 1:
                self.said.append(
                    f"HypergradientLR is unstable: at step {clock.step + 1:,} the rate would have become {wanted:.3g} times what "
                    f"it was at first, and is held between 1/{limit:g} and {limit:g} times; lower beta, or choose the rate by "
                    "`regraft lr`"
                )
        ratio = bounded / self.scale
        self.descent.base_rates = [rate * ratio for rate in self.descent.base_rates]
        self.scale = bounded

    def state_dict(self) -> State:
        """The wrapped update's state, the rates, and what the next hypergradient needs."""
        return {
            "base": self.base.state_dict(), "scale": self.scale, "beta": self.beta, "steps": self.steps, "signs": self.signs,
            "held": self.held, "rates": list(self.descent.base_rates), "said": self.said,
        }  # fmt: skip

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        self.base.load_state_dict(state["base"])
        self.scale, self.beta, self.held = float(state["scale"]), float(state["beta"]), int(state["held"])
        self.steps = [step.clone() for step in state["steps"]]
        self.signs, self.said = [int(sign) for sign in state["signs"]], [str(one) for one in state["said"]]
        self.descent.base_rates = [float(rate) for rate in state["rates"]]


@dataclass(frozen=True)
class Descending:
    """Builds an update and wraps it as a `DescendingRate`."""

    base: UpdateBuilder
    spec: HypergradientLR

    def __call__(self, params: NamedParams) -> Update:
        """The update of these parameters."""
        return DescendingRate(self.base(params), self.spec)


class SayRate(Hook):
    """Hands what the guard found to the report, and at the end where the rate has gone."""

    def on_step(self, run: Run, loss: Loss) -> None:
        """What was found in this step."""
        for update in _found(run):
            for sentence in update.said:
                run.note(sentence)
            update.said = []

    def on_end(self, run: Run) -> None:
        """When the stage ends."""
        for update in _found(run):
            held = f"; it was held at a bound in {update.held:,} steps" if update.held else ""
            run.note(f"HypergradientLR: the learning rate ended at {update.scale:.3g} times what it was at first{held}")


def _found(run: Run) -> list[DescendingRate]:
    return [each for update in run.step.updates.values() for each in layers(update) if isinstance(each, DescendingRate)]


class HypergradientLR(Technique):
    """Changes the learning rate in each step by the derivative of the loss with respect to it: up while steps agree.

    Baydin et al., 2018, arXiv:1703.04782, eq. 5 and 6: the derivative is minus the inner product of the new gradient and the last
    step over its rate, of any optimizer. All groups and the schedule keep their share. `rule: absolute` moves the rate by beta
    times that; `relative` multiplies it by 1 + beta times the cosine between the two, so that beta needs no scale. Such a
    descent may be unstable, so it is guarded: one step changes the rate by a factor of 2 at most, it stays within `limit` times
    the rate at first and that over `limit`, and beta is halved where the sign turns in nearly every step; each is said in the
    report. The factor is in the log.

    Use it when the right rate is not known within a factor of ten and one run is all there is.
    Not instead of a decay: with small batches the inner product is mostly noise, and the greedy rate of now is not that of the
    end. Nor where `regraft lr` can look for a rate beforehand. It costs two copies of the trained weights.

    Attributes:
        beta: rate at which the rate learns; 0 turns it off.
        rule: what beta multiplies.
        limit: the factor within which the rate stays of what it was at first.

    Example:
        ```yaml
        train: {optimizer: {AdamW: {lr: 1.0e-4}}}
        techniques:
          - HypergradientLR: {beta: 0.02}
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"update", "hooks"})

    beta: float = Field(default=0.02, ge=0)
    rule: Literal["relative", "absolute"] = "relative"
    limit: float = Field(default=10.0, gt=1)

    def apply(self, recipe: Recipe) -> Recipe:
        """Wrap the update of every stage; each begins at the rate of its optimizer."""
        return recipe if self.beta == 0 else each_stage(recipe, self._descending)

    def _descending(self, stage: Stage[Any]) -> Stage[Any]:
        return replace(stage, update=Descending(stage.update, self), hooks=(*stage.hooks, SayRate()))
