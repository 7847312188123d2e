"""Losses as data: what compares a model's outputs with the targets, and for which tasks that means something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from regraft.config.spec import Named
from regraft.core import Batch, Clock, Loss, Objective, forward
from regraft.errors import ConfigError
from regraft.losses.supervised import OTHER, SHARE, objective_for
from regraft.losses.tasks import TaskLosses

CLASSES = frozenset({"binary", "multiclass"})
SEVERAL = {"multilabel": "CrossEntropy", "regression": "MSE"}  # the loss of several tasks where a recipe names none
OTHERS = {"language-model": "NextToken"}  # that of tasks without labels


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the training targets are."""

    task: str  # binary, multiclass, multilabel, regression or language-model
    counts: Tensor | None = None  # (C,) training examples of each class or label
    tasks: tuple[str, ...] = ()  # names of what each example is asked: the labels, or the targets of a regression


class Criterion(Named):
    """A loss. `tasks` are those it means something for."""

    family: ClassVar[str] = "loss"
    tasks: ClassVar[frozenset[str]] = frozenset()
    one_target: ClassVar[bool] = False  # does it need a regression to have one target?

    def objective(self, question: Question) -> Objective:
        """The objective that calls the model and compares its outputs with `y`.

        Raises:
            ConfigError: the loss says nothing about this task; the sentence names those that do.
        """
        if question.task not in self.tasks:
            fitting = ", ".join(criteria_for(question.task))
            raise ConfigError(
                f"train.loss: {type(self).__name__} is for {' and '.join(sorted(self.tasks))}, but the task is {question.task}; "
                f"take {fitting}, or leave `loss` out"
            )
        if self.one_target and len(question.tasks) > 1:
            raise ConfigError(
                f"train.loss: {type(self).__name__} orders examples by one number, but the label names "
                f"{', '.join(question.tasks)}; name one of them, or take MSE, MAE or Huber"
            )
        return self._objective(question)

    def _objective(self, question: Question) -> Objective:
        raise NotImplementedError(f"{type(self).__name__} does not say how it compares")


class EachExample(Criterion):
    """A loss that is a mean over examples, so that a batch may be cut and examples may be mixed."""

    def _objective(self, question: Question) -> Objective:
        return MeanOverExamples(self, question)

    def values(self, outputs: Tensor, target: Tensor, question: Question) -> Tensor:
        """(N,) losses of outputs (N, C) in fp32; rows whose target is missing may hold anything finite."""
        raise NotImplementedError(f"{type(self).__name__} does not say what an example costs")

    def task_values(self, outputs: Tensor, target: Tensor, question: Question) -> Tensor:
        """(N, T) losses of each of the T tasks of an example, whose mean is `values`."""
        raise NotImplementedError(f"{type(self).__name__} does not say what a task costs")

    def weights(self, target: Tensor, question: Question) -> Tensor:
        """(N,) weights in the mean; 0 for rows whose target is missing."""
        return (target >= 0).float() if question.task in CLASSES else torch.ones(len(target), device=target.device)


Values = Callable[[Tensor, Tensor, Question], Tensor]


class WholeBatch(Criterion):
    """A loss that compares the examples of a batch with each other."""

    def _objective(self, question: Question) -> Objective:
        return OverBatch(self, question)

    def value(self, outputs: Tensor, target: Tensor, question: Question) -> Tensor:
        """() loss of outputs (N, C) in fp32; no target is missing."""
        raise NotImplementedError(f"{type(self).__name__} does not say what a batch costs")


class MeanOverExamples(nn.Module):
    """The weighted mean of an `EachExample`; of mixed examples both targets count, each with its share."""

    def __init__(self, criterion: EachExample, question: Question) -> None:
        super().__init__()
        self.criterion, self.question = criterion, question

    def forward(self, model: nn.Module, batch: Batch, clock: Clock) -> Loss:
        """Mean loss; for classes `accuracy` in the log."""
        outputs, target = forward(model, batch).float(), batch["y"]
        value, weight = self._mean(self.criterion.values, outputs, batch)
        terms = {"accuracy": _accuracy(outputs, target)} if self.question.task in CLASSES else {}
        return Loss(value, weight, terms)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Of the tasks, where an example has several."""
        return self.question.tasks

    def tasks(self, model: nn.Module, batch: Batch, clock: Clock) -> TaskLosses:
        """The mean loss of each task; their mean is the loss."""
        values, weight = self._mean(self.criterion.task_values, forward(model, batch).float(), batch)
        return TaskLosses(values, weight)

    def _mean(self, of: Values, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mean of values (N,) or (N, T) over the examples, and the weight it is the mean of."""
        target = batch["y"]
        parts = [(target, batch[SHARE]), (batch[OTHER], 1 - batch[SHARE])] if SHARE in batch else [(target, None)]
        total, weight = outputs.new_zeros(()), outputs.new_zeros(())
        for each, share in parts:
            weights = self.criterion.weights(each, self.question)
            weights = weights if share is None else weights * share
            values = of(outputs, each, self.question)
            total = total + (weights.reshape(-1, *[1] * (values.ndim - 1)) * values).sum(0)
            weight = weight + weights.sum()
        weight = weight.clamp(min=1e-6)
        return total / weight, weight


class OverBatch(nn.Module):
    """A `WholeBatch` on the rows whose target is known."""

    splittable = False

    def __init__(self, criterion: WholeBatch, question: Question) -> None:
        super().__init__()
        self.criterion, self.question = criterion, question

    def forward(self, model: nn.Module, batch: Batch, clock: Clock) -> Loss:
        """Loss of the batch; for classes `accuracy` in the log.

        Raises:
            ConfigError: the examples are mixtures, which have no one target.
        """
        if SHARE in batch:
            raise ConfigError(
                f"train.loss: {type(self.criterion).__name__} compares whole examples, and MixUp mixes them; leave one of the "
                "two out"
            )
        outputs, target = forward(model, batch).float(), batch["y"]
        terms = {}
        if self.question.task in CLASSES:
            terms, known = {"accuracy": _accuracy(outputs, target)}, target >= 0
            outputs, target = outputs[known], target[known]
        return Loss(self.criterion.value(outputs, target, self.question), len(outputs), terms)


def question_of(task: str, targets: Tensor | None, num_outputs: int = 0, names: tuple[str, ...] = ()) -> Question:
    """The question that training targets (N,) or (N, C) put; missing ones are -1.

    `names` are those of the labels, or of the targets of a regression.
    """
    if task in SEVERAL and not names and targets is not None and targets.ndim == 2:
        names = tuple(str(t) for t in range(targets.shape[1]))
    tasks = names if task in SEVERAL else ()
    if targets is None or task == "regression" or task in OTHERS:
        return Question(task=task, tasks=tasks)
    if task == "multilabel":
        return Question(task=task, counts=targets.sum(0).float(), tasks=tasks)
    return Question(task=task, counts=torch.bincount(targets[targets >= 0], minlength=num_outputs).float())


def criteria_for(task: str) -> list[str]:
    """Names of the losses that mean something for a task."""
    from regraft.config.catalogue import find, names

    return [name for name in names("loss") if issubclass(cls := find("loss", name), Criterion) and task in cls.tasks]


def objective_of(criterion: Named | None, question: Question) -> Objective:
    """The objective of a recipe: that of its loss, or the usual one of the task."""
    if criterion is None:
        from regraft.config.catalogue import find

        usual = SEVERAL.get(question.task) if len(question.tasks) > 1 else OTHERS.get(question.task)
        if usual is None:
            return objective_for(question.task)
        criterion = find("loss", usual)()
    assert isinstance(criterion, Criterion), "the family holds nothing else"
    return criterion.objective(question)


def _accuracy(outputs: Tensor, target: Tensor) -> Tensor:
    return (outputs.detach().argmax(-1) == target).sum() / (target >= 0).sum().clamp(min=1)
