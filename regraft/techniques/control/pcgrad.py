"""PCGrad: before a step, each task's gradient gives up what would work against another task."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from regraft.core import Batch, Clock, Loss, Recipe, Stage, Technique, Update, UpdateWrapper, each_stage
from regraft.core.micro_batch import randomness, restore_randomness
from regraft.core.protocols import LossFn, NamedParams, UpdateBuilder
from regraft.losses.tasks import SeveralTasks, TaskLosses, several_tasks
from regraft.optim.surgery import conflicts, inner_products, projected


class OneOf(nn.Module):
    """`base`, of which for a while one task alone counts."""

    def __init__(self, base: SeveralTasks) -> None:
        super().__init__()
        self.base = base
        self.chosen: int | None = None

    @property
    def task_names(self) -> tuple[str, ...]:
        """Of the base objective."""
        return self.base.task_names

    @contextmanager
    def only(self, task: int) -> Generator[None]:
        """Inside the block the loss is that of this task."""
        self.chosen = task
        try:
            yield
        finally:
            self.chosen = None

    def tasks(self, model: nn.Module, batch: Batch, clock: Clock) -> TaskLosses:
        """The base's; where one is chosen it counts T times and the others nothing, so that their mean is its loss."""
        found = self.base.tasks(model, batch, clock)
        if self.chosen is None:
            return found
        counted = torch.zeros_like(found.values)
        counted[self.chosen] = len(counted)
        return TaskLosses(found.values * counted, found.weight)

    def forward(self, model: nn.Module, batch: Batch, clock: Clock) -> Loss:
        """The base loss, or that of the chosen task."""
        return self.base(model, batch, clock) if self.chosen is None else self.tasks(model, batch, clock).mean()


class Surgery(UpdateWrapper):
    """The wrapped update, with the mean of the tasks' projected gradients."""

    def __init__(self, base: Update, objective: OneOf, rounds: int) -> None:
        super().__init__(base)
        self.objective, self.rounds = objective, rounds

    def gradients(self, loss_fn: LossFn, batch: Batch) -> Loss:
        """A pass for each task, all with the same dropout; the loss is their mean, with the share of pairs in conflict."""
        count, before = len(self.objective.task_names), randomness(self.params[0].device)
        losses: list[Loss] = []
        found: list[list[Tensor | None]] = []
        for task in range(count):
            restore_randomness(self.params[0].device, before)
            with self.objective.only(task):
                losses.append(self.base.gradients(loss_fn, batch))
            found.append([p.grad for p in self.params])
        products = inner_products(found)
        orders = [[other for other in torch.randperm(count).tolist() if other != task] for task in range(count)]
        shares = projected(products, orders, rounds=self.rounds).mean(0).tolist()
        for parameter, parts in zip(self.params, zip(*found, strict=True), strict=True):
            known = [(share, part) for share, part in zip(shares, parts, strict=True) if part is not None]
            parameter.grad = torch.stack([share * part for share, part in known]).sum(0) if known else None
        return _mean(losses, conflicts(products))


def _mean(losses: list[Loss], share: float) -> Loss:
    """The mean over the tasks, term by term."""
    value = torch.stack([loss.value for loss in losses]).mean()
    terms = {name: torch.stack([loss.terms[name] for loss in losses]).mean() for name in losses[0].terms}
    return Loss(value, losses[0].weight, {**terms, "conflicts": torch.tensor(share, device=value.device)})


@dataclass(frozen=True)
class Operating:
    """Builds an update and wraps it as `Surgery`."""

    base: UpdateBuilder
    objective: OneOf
    rounds: int

    def __call__(self, params: NamedParams) -> Update:
        """The update of these parameters."""
        return Surgery(self.base(params), self.objective, self.rounds)


class PCGrad(Technique):
    """Takes from each task's gradient what points against another task's, then steps along their mean.

    Yu et al., 2020, arXiv:2001.06782, algorithm 1, with the mean over the tasks instead of the sum, as the loss is a mean. The
    tasks are the labels of multi-label data, or the targets of a regression of several numbers (`label: [a, b]`). What other
    techniques add to the loss, such as a penalty, is part of every task. The log says which share of the pairs was in conflict.

    Use it when tasks share a network and one learns at the cost of another: `conflicts` in the log is far from 0.
    Not for many tasks, for a step costs a forward and a backward pass for each, and running statistics of batch normalisation
    see the batch as often. Where nothing conflicts it changes nothing.

    Attributes:
        rounds: how often a gradient meets all others. Once is the paper, and with two tasks no conflict is left; from three on
            the last projections can bring an earlier conflict back, which more rounds remove.

    Example:
        ```yaml
        data:
          main: {path: wine.csv, label: [alcohol, acidity, quality]}
        techniques:
          - PCGrad
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"objective", "update"})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "inner"  # what is added to the loss is part of every task

    rounds: int = Field(default=1, ge=1)

    def apply(self, recipe: Recipe) -> Recipe:
        """Wrap objective and update of every stage.

        Raises:
            Conflict: a stage has one task only.
        """
        return each_stage(recipe, self._operated)

    def _operated(self, stage: Stage[Any]) -> Stage[Any]:
        objective = OneOf(several_tasks(stage.objective, asked_by="PCGrad", stage=stage.name))
        return replace(stage, objective=objective, update=Operating(stage.update, objective, self.rounds))
