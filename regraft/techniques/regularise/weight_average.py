"""Weight averaging: finish a stage with the average of its weights instead of the last ones."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from regraft.core import Hook, Loss, Recipe, Run, Technique, each_stage
from regraft.core.forward import forward, inputs_of
from regraft.core.modes import train_mode
from regraft.core.protocols import State
from regraft.core.seeding import seed_default


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
        start = clock.total * (1 - spec.last)
        if spec.kind != "exponential" and clock.step <= start:
            return
        if spec.kind == "swa" and (clock.step - math.floor(start)) % spec.every:
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
        """The model gets the average, and running statistics that belong to it."""
        if not self.count:
            run.note(
                f"WeightAverage: {run.clock.step:,} steps hold no sample of the weights, so the last ones are kept"
            )
        for name, parameter in trained(run).items():
            if name in self.averages:
                parameter.copy_(self.averages[name])
        if self.count:
            self._estimate_statistics(run)
        self.averages, self.count = {}, 0

    def _estimate_statistics(self, run: Run) -> None:
        """Running statistics of the batch normalisations that train, anew, as means over batches of the stage."""
        model, source = run.stage.model, run.stage.source
        train_mode(model)
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
        norms = [norm for norm in norms if norm.track_running_stats]
        if not norms:
            return
        before = source.state_dict()
        batches = list(islice(source.batches(model, 0), self.spec.statistics))
        source.load_state_dict(before)
        if not set(inputs_of(model)) <= batches[0].keys():
            run.note(
                "WeightAverage: batches do not hold what the model is called on, so running statistics stay those of the last "
                "weights"
            )
            return
        with torch.random.fork_rng(devices=[]), cumulative(norms):
            seed_default(run.seed, run.index, run.clock.step)
            for batch in batches:
                forward(model, batch)

    def state_dict(self) -> State:
        """The average and how many weights are in it."""
        return {"count": self.count, "averages": self.averages}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        self.count = state["count"]
        self.averages = {name: average.clone() for name, average in state["averages"].items()}


@contextmanager
def cumulative(norms: Sequence[_BatchNorm]) -> Generator[None]:
    """Inside, running statistics start anew and are plain means over the batches seen; momenta are put back after it."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def trained(run: Run) -> dict[str, Tensor]:
    """The model's parameters that train in this stage, by name."""
    return {name: p for name, p in run.stage.trainable().items() if name.startswith("model.")}


class WeightAverage(Technique):
    """Ends every stage with an average of the weights it went through.

    "exponential" averages with `decay` per step (Polyak and Juditsky, 1992, in the exponential form, with a shorter memory
    in the first steps); "swa" gives the same weight to a sample every `every` steps of the `last` share of the stage (Izmailov et
    al., 2018, arXiv:1803.05407, algorithm 1); "uniform" is swa with a sample of every step. The rate should stay high or
    cyclic there, which is for the schedule to say: what is averaged must differ. SWA is no warm restart, though both may use a
    cyclic rate. Running statistics of batch normalisation that trains are estimated anew for the averaged weights, as the mean
    over training batches.

    Use it when the loss is noisy or the learning rate stays high to the end: it costs one pass over the weights per step.
    Not when the rate has gone to 0 long before the end: all weights are the same then.

    Attributes:
        kind: how the weights of the steps are averaged.
        decay: share of the old average per step; 0 keeps the last weights.
        last: share of the stage's steps that a uniform or swa average is over.
        every: of swa, steps between two samples; usually an epoch, or a cycle of the rate.
        statistics: batches that running statistics are estimated on.

    Example:
        ```yaml
        techniques:
          - WeightAverage: {kind: swa, last: 0.25, every: 10}
        ```
    """

    kind: Literal["exponential", "uniform", "swa"] = Field(default="exponential")
    decay: float = Field(default=0.99, ge=0, lt=1)
    last: float = Field(default=0.25, gt=0, le=1)
    every: int = Field(default=1, ge=1)
    statistics: int = Field(default=50, ge=1)

    wraps: ClassVar[frozenset[str]] = frozenset({"hooks"})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "inner"  # what other hooks see at the end is the average

    def apply(self, recipe: Recipe) -> Recipe:
        """Add the hook to every stage."""
        return each_stage(recipe, lambda stage: replace(stage, hooks=(Averaging(self), *stage.hooks)))
