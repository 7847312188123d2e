"""Several tasks in one objective: the labels of an example, or the targets of a regression, each with a loss of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor, nn

from regraft.core import Batch, Clock, Loss
from regraft.errors import Conflict


@dataclass(frozen=True, slots=True)
class TaskLosses:
    """What each task costs on a batch."""

    values: Tensor  # (T,) differentiable means over the examples
    weight: float | Tensor  # how many examples they are the mean of

    def mean(self) -> Loss:
        """All tasks as one loss, in which they count the same."""
        return Loss(self.values.mean(), self.weight)


class SeveralTasks(Protocol):
    """An objective that is the mean of the losses of several tasks, and tells them apart."""

    @property
    def task_names(self) -> tuple[str, ...]:
        """Of the T tasks, in their order."""
        ...

    def tasks(self, model: nn.Module, batch: Batch, clock: Clock, /) -> TaskLosses:
        """The loss of each task."""
        ...

    def __call__(self, model: nn.Module, batch: Batch, clock: Clock, /) -> Loss:
        """Their mean."""
        ...


def several_tasks(objective: object, *, asked_by: str, stage: str) -> SeveralTasks:
    """The objective itself, known to tell its tasks apart.

    Raises:
        Conflict: it has one task only.
    """
    names = getattr(objective, "task_names", ())
    if len(names) < 2:
        raise Conflict(
            f"{asked_by} weighs several tasks against each other, but stage {stage!r} has one; give data with several labels, "
            f"or several columns of numbers (data.main.label: [a, b]), or leave {asked_by} out"
        )
    return cast(SeveralTasks, objective)
