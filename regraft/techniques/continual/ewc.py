"""Elastic weight consolidation: weights that mattered for earlier stages are held where they were."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from regraft.core import Batch, Clock, Hook, Loss, Objective, Recipe, Run, Stage, Technique, each_stage, trainable
from regraft.core.modes import eval_mode
from regraft.core.values import size
from regraft.layers.bound import Bound

MAX_VALUES = 1 << 26  # gradient values held at once by the vectorised Fisher: 256 MB in fp32


def fisher_by_loop(
    objective: Objective, model: nn.Module, batch: Batch, clock: Clock, names: frozenset[str]
) -> dict[str, Tensor]:
    """Sum over the N examples of the squared gradient of each example's own loss, by parameter name: one backward pass each."""
    params = {name: p for name, p in trainable(model).items() if name in names}
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    for row in range(size(batch)):
        loss = objective(model, {key: value[row : row + 1] for key, value in batch.items()}, clock).value
        grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True, materialize_grads=True)
        for name, g in zip(params, grads, strict=True):
            total[name] += g.square()
    return total


def fisher_by_vmap(
    objective: Objective, model: nn.Module, batch: Batch, clock: Clock, names: frozenset[str]
) -> dict[str, Tensor]:
    """As `fisher_by_loop`, all examples of a slice in one vectorised backward pass.

    Raises:
        RuntimeError: the model or the objective uses what `torch.func.vmap` cannot vectorise.
    """
    bound = Bound(objective, model)
    params = {f"model.{name}": p.detach() for name, p in trainable(model).items() if name in names}

    def loss_of_one(weights: dict[str, Tensor], example: Batch) -> Tensor:
        return functional_call(bound, weights, ({key: value[None] for key, value in example.items()}, clock)).value

    rows = max(1, MAX_VALUES // max(1, sum(p.numel() for p in params.values())))
    per_example = vmap(grad(loss_of_one), in_dims=(None, 0))
    total = {name.removeprefix("model."): torch.zeros_like(p) for name, p in params.items()}
    for at in range(0, size(batch), rows):
        grads = per_example(params, {key: value[at : at + rows] for key, value in batch.items()})
        for name, g in grads.items():
            total[name.removeprefix("model.")] += g.square().sum(0)
    return total


def fisher(
    objective: Objective, model: nn.Module, batch: Batch, clock: Clock, names: frozenset[str]
) -> dict[str, Tensor]:
    """The sum of squared per-example gradients by the vectorised way where the model allows it, else by the loop.

    Squares of the mean gradient are not it: on a converged model they are smaller by about the batch size.
    """
    try:
        return fisher_by_vmap(objective, model, batch, clock, names)
    except (
        RuntimeError
    ):  # vmap cannot trace data-dependent control flow or some kernels; the loop gives the same numbers
        return fisher_by_loop(objective, model, batch, clock, names)


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
