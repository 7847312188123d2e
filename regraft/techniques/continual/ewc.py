"""Elastic weight consolidation: weights that mattered for earlier stages are held where they were."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from regraft.core import Batch, Clock, Hook, Loss, Objective, Recipe, Run, Stage, Technique, each_stage, trainable
from regraft.core.modes import eval_mode
from regraft.core.values import size
from regraft.models.fisher import fisher


class Elastic(nn.Module):
    """Anchors and Fisher information of parameters, as buffers, so that a checkpoint holds them."""

    def __init__(self, model: nn.Module, names: frozenset[str], spec: EWC) -> None:
        super().__init__()
        self.spec, self.names = spec, names
        for name, p in model.named_parameters():
            if name in names:
                self.register_buffer(f"anchor_{escaped(name)}", p.detach().clone())
                self.register_buffer(f"fisher_{escaped(name)}", torch.zeros_like(p))

    def held(self, model: nn.Module) -> Iterator[tuple[nn.Parameter, Tensor, Tensor]]:
        """(parameter, anchor, Fisher) of every parameter that trains now and is remembered."""
        for name, p in trainable(model).items():
            if name in self.names:
                yield p, self.get_buffer(f"anchor_{escaped(name)}"), self.get_buffer(f"fisher_{escaped(name)}")

    def penalty(self, model: nn.Module) -> Tensor:
        """The pull back, weight / 2 sum F (w - anchor)^2, (). Kirkpatrick et al., 2017, eq. 3."""
        pulls = [(information * (p - anchor).square()).sum() for p, anchor, information in self.held(model)]
        if not pulls:
            return next(self.buffers()).new_zeros(())
        return 0.5 * self.spec.weight * torch.stack(pulls).sum()

    def consolidate(self, stage: Stage[Any], objective: Objective, clock: Clock) -> None:
        """Add the mean squared per-example gradient of the stage's examples to the Fisher; move the anchors here."""
        seen, new = 0, {}
        with eval_mode(stage.model):
            for batch in stage.source.batches(stage.model):
                part = {key: value[: self.spec.samples - seen] for key, value in batch.items()}
                seen += size(part)
                for name, value in fisher(objective, stage.model, part, clock, self.names).items():
                    new[name] = new.get(name, 0) + value
                if seen >= self.spec.samples:
                    break
        with torch.no_grad():
            for name, value in new.items():
                self.get_buffer(f"fisher_{escaped(name)}").mul_(self.spec.memory).add_(value / seen)
                self.get_buffer(f"anchor_{escaped(name)}").copy_(stage.model.get_parameter(name))


class Consolidate(Hook):
    """Consolidates at the end of a stage, on the objective as it is without the penalty."""

    def __init__(self, elastic: Elastic, base: Objective) -> None:
        self.elastic, self.base = elastic, base

    def on_end(self, run: Run) -> None:
        """Remember what this stage has learned."""
        self.elastic.consolidate(run.stage, self.base, run.clock)


class Penalised(nn.Module):
    """`base` plus the elastic penalty."""

    def __init__(self, base: Objective, elastic: Elastic) -> None:
        super().__init__()
        self.base, self.elastic = base, elastic

    def forward(self, model: nn.Module, batch: Batch, clock: Clock) -> Loss:
        """The base loss with the penalty added; `elastic` in the log is the penalty."""
        loss, pull = self.base(model, batch, clock), self.elastic.penalty(model)
        return Loss(loss.value + pull, loss.weight, {**loss.terms, "elastic": pull.detach()})


def escaped(name: str) -> str:
    """A parameter name without dots, different for different names: buffers may not hold a dot."""
    return name.replace("_", "_u").replace(".", "_d")


class EWC(Technique):
    """Holds weights near where earlier stages left them, each as firmly as those stages' losses depended on it.

    Kirkpatrick et al., 2017, arXiv:1612.00796, eq. 3. The Fisher information is the mean of squared per-example gradients of
    the stage's own objective (the empirical one), summed over stages around the latest weights; `memory` below 1 is the online
    form of Schwarz et al., 2018, arXiv:1805.06370, eq. 9. Without an earlier stage nothing is held.

    Use it when the same model learns one data set after another and the earlier data cannot be kept.
    Not when it can be kept: replaying some of it forgets less. A model fitted perfectly has hardly any Fisher information left.

    Attributes:
        weight: of the penalty; 0 turns it off.
        samples: examples of each stage that its Fisher information is computed on.
        memory: factor on the earlier Fisher information at the end of a stage.

    Example:
        ```yaml
        stages:
          - {name: last-year, steps: 500, data: old}
          - {name: this-year, steps: 500, data: main}
        techniques:
          - EWC: {weight: 100, samples: 512}
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"objective", "hooks"})

    weight: float = Field(default=100.0, ge=0)
    samples: int = Field(default=256, ge=1)
    memory: float = Field(default=1.0, ge=0, le=1)

    def apply(self, recipe: Recipe) -> Recipe:
        """Add the penalty to every stage, and one memory that all of them share."""
        if self.weight == 0:
            return recipe
        trained = [trainable(stage.model).keys() if stage.trains is None else stage.trains for stage in recipe.stages]
        elastic = Elastic(recipe.model, frozenset().union(*trained), self)
        return each_stage(recipe, lambda stage: self._penalised(stage, elastic))

    def _penalised(self, stage: Stage[Any], elastic: Elastic) -> Stage[Any]:
        hook = Consolidate(elastic, stage.objective)
        return replace(stage, objective=Penalised(stage.objective, elastic), hooks=(*stage.hooks, hook))
