"""Weight averaging: finish a stage with the average of its weights instead of the last ones."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from regraft.core import Hook, Loss, Recipe, Run, Technique, each_stage
from regraft.core.protocols import State


def moving_rate(decay: float, count: int) -> float:
    """Share of the old average at the `count`-th update (from 0): `decay`, less in the beginning, min(decay, (1 + n) / (10 + n)).

    Without it, the weights training started from would stay in the average for 1 / (1 - decay) steps.
    """
    return min(decay, (1 + count) / (10 + count))


class Averaging(Hook):
    """Keeps the average of the trained weights, and puts it into the model when the stage ends."""

    def __init__(self, spec: WeightAverage) -> None:
        self.spec = spec
        self.count = 0
        self.averages: dict[str, Tensor] = {}

    @torch.no_grad()
    def on_step(self, run: Run, loss: Loss) -> None:
        """Take the new weights into the average."""
        spec, clock = self.spec, run.clock
        if spec.kind == "uniform" and clock.step <= clock.total * (1 - spec.last):
            return
        old = moving_rate(spec.decay, self.count) if spec.kind == "exponential" else self.count / (self.count + 1)
        for name, parameter in trained(run).items():
            if name in self.averages:
                self.averages[name].lerp_(parameter, 1 - old)
            else:
                self.averages[name] = parameter.detach().clone()
        self.count += 1

    @torch.no_grad()
    def on_end(self, run: Run) -> None:
        """The model gets the average; running statistics of batch normalisation stay as they were trained."""
        for name, parameter in trained(run).items():
            if name in self.averages:
                parameter.copy_(self.averages[name])
        self.averages, self.count = {}, 0

    def state_dict(self) -> State:
        """The average and how many weights are in it."""
        return {"count": self.count, "averages": self.averages}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        self.count = state["count"]
        self.averages = {name: average.clone() for name, average in state["averages"].items()}


def trained(run: Run) -> dict[str, Tensor]:
    """The model's parameters that train in this stage, by name."""
    return {name: p for name, p in run.stage.trainable().items() if name.startswith("model.")}


class WeightAverage(Technique):
    """Ends every stage with an average of the weights it went through.

    "exponential" averages with `decay` per step (Polyak and Juditsky, 1992, in the exponential form, with a shorter memory
    in the first steps); "uniform" gives the same weight to each of the `last` share of the steps (Izmailov et al., 2018,
    arXiv:1803.05407, algorithm 1, with one sample per step and without the cyclic rate).

    Use it when the loss is noisy or the learning rate stays high to the end: it costs one pass over the weights per step.
    Not when batch normalisation trains: its running statistics belong to the last weights, not to the averaged ones.

    Attributes:
        kind: how the weights of the steps are averaged.
        decay: share of the old average per step; 0 keeps the last weights.
        last: share of the stage's steps that a uniform average is over.

    Example:
        ```yaml
        techniques:
          - WeightAverage: {kind: uniform, last: 0.25}
        ```
    """

    kind: Literal["exponential", "uniform"] = Field(default="exponential")
    decay: float = Field(default=0.99, ge=0, lt=1)
    last: float = Field(default=0.25, gt=0, le=1)

    wraps: ClassVar[frozenset[str]] = frozenset({"hooks"})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "inner"  # what other hooks see at the end is the average

    def apply(self, recipe: Recipe) -> Recipe:
        """Add the hook to every stage."""
        return each_stage(recipe, lambda stage: replace(stage, hooks=(Averaging(self), *stage.hooks)))
