"""From Adam to SGD late in training, at the rate at which SGD takes steps of the same length."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from regraft.core import Clock, Hook, Recipe, Run, Stage, Technique, Update, UpdateWrapper, each_stage
from regraft.core.descent import Descent
from regraft.core.protocols import NamedParams, State, UpdateBuilder, layers
from regraft.errors import ConfigError

WATCHED = 0.1  # share of the stage before the switch in which rates are compared
MEMORY = 0.9  # of the running mean of the rates


class Switching(UpdateWrapper):
    """The wrapped Adam until the share `at` of the stage, then SGD with momentum over the same parameter groups."""

    def __init__(self, base: Update, at: float) -> None:
        super().__init__(base)
        self.at = at
        self.rate, self.seen = 0.0, 0  # running sum of the rates of SGD, and the steps it is of
        self.switched = False

    @property
    def descent(self) -> Descent:
        """The update at the bottom, whose optimizer is exchanged."""
        found = next((each for each in layers(self.base) if isinstance(each, Descent)), None)
        if found is None:
            raise ConfigError("AdamToSGD: the stage's update has no optimizer to switch from")
        return found

    def apply(self, clock: Clock) -> None:
        """One step of whichever optimizer it is; on the way to the switch its length is compared with the gradient's."""
        first = max(1, math.ceil(self.at * clock.total))  # step of SGD
        if not self.switched and clock.step >= first and self.seen:
            self._switch(clock)
        watched = not self.switched and clock.step >= first - max(1, round(WATCHED * clock.total))
        before = [parameter.detach().clone() for parameter in self.params] if watched else []
        self.base.apply(clock)
        if watched:
            self._compare(before)

    def _compare(self, before: list[Tensor]) -> None:
        """The rate at which the projection of SGD's step on Adam's is Adam's: |p|^2 / -(p . g), eq. 1 of the paper."""
        length, along = torch.zeros(()), torch.zeros(())
        for parameter, old in zip(self.params, before, strict=True):
            if parameter.grad is not None:
                step = parameter.detach() - old
                length, along = length + step.square().sum().cpu(), along - (step * parameter.grad).sum().cpu()
        if along > 0:
            self.rate = MEMORY * self.rate + (1 - MEMORY) * float(length / along)
            self.seen += 1

    def _switch(self, clock: Clock) -> None:
        """SGD with Adam's first beta as momentum; groups keep their share of the rate, and the schedule goes on from here."""
        descent, factor = self.descent, max(self.descent.schedule(clock), 1e-12)
        groups, rates = descent.optimizer.param_groups, descent.base_rates
        beta = float(groups[0]["betas"][0])
        rate = (1 - beta) * self.found() / factor
        descent.use(torch.optim.SGD(
            [
                {"params": group["params"], "lr": rate * own / max(rates), "weight_decay": group["weight_decay"]}
                for group, own in zip(groups, rates, strict=True)
            ],
            lr=rate, momentum=beta, fused=True,
        ))  # fmt: skip
        self.switched = True

    def found(self) -> float:
        """The rate of SGD without momentum, the running mean without the bias of its start."""
        return self.rate / (1 - MEMORY**self.seen)

    def state_dict(self) -> State:
        """The wrapped update's state, whether it is SGD by now, and the rates of its groups."""
        return {
            "base": self.base.state_dict(), "rate": self.rate, "seen": self.seen, "switched": self.switched,
            "rates": list(self.descent.base_rates),
        }  # fmt: skip

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave, with the optimizer it is of."""
        self.rate, self.seen = float(state["rate"]), int(state["seen"])
        if state["switched"] and not self.switched:
            self._switch(Clock(0, 1))
            self.descent.base_rates = [float(rate) for rate in state["rates"]]
        self.base.load_state_dict(state["base"])


@dataclass(frozen=True)
class SwitchingOnTheWay:
    """Builds an update and wraps it as a `Switching`."""

    base: UpdateBuilder
    at: float

    def __call__(self, params: NamedParams) -> Update:
        """The update of these parameters.

        Raises:
            ConfigError: its optimizer is not one of Adam's family.
        """
        made = Switching(self.base(params), self.at)
        if "betas" not in made.descent.optimizer.param_groups[0]:
            name = type(made.descent.optimizer).__name__
            raise ConfigError(
                f"AdamToSGD switches from Adam or one of its family, and the optimizer is {name}; take AdamW"
            )
        return made


class SaySwitch(Hook):
    """Says in the report at which step and rate the switch was made, or that none was."""

    def __init__(self) -> None:
        self.said = False

    def on_step(self, run: Run, loss: Any) -> None:
        """After the first step of SGD."""
        if self.said:
            return
        found = [each for u in run.step.updates.values() for each in layers(u) if isinstance(each, Switching)]
        for update in found:
            if update.switched:
                self.said = True
                rate = max(update.descent.base_rates) * update.descent.schedule(run.clock)
                run.note(f"AdamToSGD: from step {run.clock.step:,} on SGD with momentum, at a rate of {rate:.3g}")

    def on_end(self, run: Run) -> None:
        """Where the stage was stopped before the switch, or no step of Adam gave a rate for SGD."""
        if not self.said:
            run.note(
                f"AdamToSGD: no switch was made in the {run.clock.step:,} steps of the stage; they were all Adam's"
            )

    def state_dict(self) -> State:
        """Whether it was said."""
        return {"said": self.said}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        self.said = bool(state["said"])


class AdamToSGD(Technique):
    """Trains with Adam until the share `at` of a stage and with SGD and momentum from there, without a jump of the step length.

    Keskar and Socher, 2017, arXiv:1712.07628 (SWATS). The rate of SGD is the running mean of `|p|^2 / -(p . g)` over the tenth of
    the stage before the switch, p being Adam's step and g the gradient, times 1 - beta_1 for the momentum. The paper switches
    where that mean has settled; here the share is given. Scaled rates and the schedule go on as they were. The decay of a weight
    goes on with its coefficient, and so follows the rate of SGD.

    Use it when a network trained from scratch with Adam generalises worse than with SGD, but SGD starts too slowly.
    Not for fine-tuning transformers, whose gradients differ in size by layer: there Adam stays ahead to the end.

    Attributes:
        at: share of the stage after which SGD takes over.

    Example:
        ```yaml
        train: {optimizer: {AdamW: {lr: 1.0e-3}}, schedule: Linear}
        techniques:
          - AdamToSGD: {at: 0.6}
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"update", "hooks"})

    at: float = Field(default=0.6, gt=0, lt=1)

    def apply(self, recipe: Recipe) -> Recipe:
        """Wrap the update of every stage."""
        return each_stage(recipe, self._switching)

    def _switching(self, stage: Stage[Any]) -> Stage[Any]:
        return replace(stage, update=SwitchingOnTheWay(stage.update, self.at), hooks=(*stage.hooks, SaySwitch()))
