"""Uncertainty weighting: several tasks are weighed by how noisy each turns out to be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from regraft.core import Batch, Clock, Hook, Loss, Recipe, Run, Stage, Technique, each_stage
from regraft.core.protocols import layers
from regraft.losses.tasks import SeveralTasks, TaskLosses, several_tasks


def weighted_by_noise(losses: Tensor, log_variance: Tensor) -> Tensor:
    """`(exp(-s) L + s) / 2` of losses L and log variances s, elementwise in the shape of the arguments.

    Kendall et al., 2018, arXiv:1705.07115, eq. 7 with s = log sigma^2: of a squared error the negative log-likelihood of a
    Gaussian with variance e^s, up to a constant. Its best s is log L. For classes eq. 10 has no half before L, which adds log 2
    to every s and weighs the tasks alike.
    """
    return 0.5 * (torch.exp(-log_variance) * losses + log_variance)


class Weighted(nn.Module):
    """The mean over the tasks of `base`, each weighed by a variance that is learned."""

    why_no_level = (
        "is divided by variances that are learned, which makes a hard batch weigh the more the better all others fit"
    )

    def __init__(self, base: SeveralTasks, speed: float) -> None:
        super().__init__()
        self.base, self.speed = base, speed
        self.scaled = nn.Parameter(torch.zeros(len(base.task_names)))

    @property
    def task_names(self) -> tuple[str, ...]:
        """Of the base objective."""
        return self.base.task_names

    @property
    def log_variance(self) -> Tensor:
        """(T,) of the tasks, 0 at the start."""
        return self.speed * self.scaled

    def tasks(self, model: nn.Module, batch: Batch, clock: Clock) -> TaskLosses:
        """The weighted loss of each task."""
        found = self.base.tasks(model, batch, clock)
        return TaskLosses(weighted_by_noise(found.values, self.log_variance), found.weight)

    def forward(self, model: nn.Module, batch: Batch, clock: Clock) -> Loss:
        """Their mean, with the log variances in the log."""
        loss = self.tasks(model, batch, clock).mean()
        learned = {f"log_variance/{n}": s for n, s in zip(self.task_names, self.log_variance.detach(), strict=True)}
        return Loss(loss.value, loss.weight, learned)


class SayVariances(Hook):
    """Says in the report what the log variances came to."""

    def on_end(self, run: Run) -> None:
        """When the stage ends."""
        found = next(each for each in layers(run.stage.objective) if isinstance(each, Weighted))
        pairs = sorted(zip(found.log_variance.tolist(), found.task_names, strict=True))
        said = ", ".join(f"{name} {value:.2f}" for value, name in pairs)
        run.note(f"UncertaintyWeighting: log variances of the tasks, the least noisy first: {said}")


class UncertaintyWeighting(Technique):
    """Learns a variance for each task and divides its loss by it, so that noisy tasks do not drown the others.

    Kendall et al., 2018, arXiv:1705.07115, eq. 7: the loss of a task is `(exp(-s) L + s) / 2` with a learned log variance s, the
    mean over the tasks is minimised. The tasks are the labels of multi-label data, or the targets of a regression of several
    numbers (`label: [a, b]`). The log variances are in the log and, at the end of a stage, in the report.

    Use it when tasks differ in noise or unit, and nobody wants to tune their weights by hand.
    Not when the noisy task is the one that matters: it gets the smallest weight. Nor in very short trainings, in which the
    variances have no time to settle.

    Attributes:
        speed: how much faster than the model's weights the log variances learn, as a factor on the learning rate of Adam and its
            like.

    Example:
        ```yaml
        data:
          main: {path: wine.csv, label: [alcohol, acidity, quality]}
        techniques:
          - UncertaintyWeighting
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"objective", "hooks"})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "inner"  # penalties go around it, and are not weighed

    speed: float = Field(default=10.0, gt=0)

    def apply(self, recipe: Recipe) -> Recipe:
        """Weigh the tasks of every stage; each stage learns variances of its own.

        Raises:
            Conflict: a stage has one task only.
        """
        return each_stage(recipe, self._weighted)

    def _weighted(self, stage: Stage[Any]) -> Stage[Any]:
        objective = Weighted(
            several_tasks(stage.objective, asked_by="UncertaintyWeighting", stage=stage.name), self.speed
        )
        return replace(stage, objective=objective, hooks=(*stage.hooks, SayVariances()))
