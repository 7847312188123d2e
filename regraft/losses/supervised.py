"""The objectives of supervised training, one for each task: each calls the model on a batch and compares with `y`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from regraft.core import Batch, Clock, Loss, Objective, forward
from regraft.errors import ConfigError


def cross_entropy(model: nn.Module, batch: Batch, clock: Clock) -> Loss:
    """Mean cross-entropy in nats of logits (N, C) against class ids `y` (N,); rows with y = -1 do not count."""
    logits, target = forward(model, batch).float(), batch["y"]
    count = (target >= 0).sum().clamp(min=1)
    value = F.cross_entropy(logits, target, ignore_index=-1, reduction="sum") / count
    accuracy = (logits.detach().argmax(-1) == target).sum() / count  # no class is called -1
    return Loss(value, count, {"accuracy": accuracy})


def binary_cross_entropy(model: nn.Module, batch: Batch, clock: Clock) -> Loss:
    """Mean binary cross-entropy in nats of logits (N, C) against `y` (N, C) of 0 and 1, for multi-label data."""
    logits = forward(model, batch).float()
    return Loss(F.binary_cross_entropy_with_logits(logits, batch["y"]), len(logits))


def squared_error(model: nn.Module, batch: Batch, clock: Clock) -> Loss:
    """Mean squared error of outputs (N, 1) against `y` (N,) in units of the training targets' standard deviation."""
    output = forward(model, batch).float().squeeze(-1)
    return Loss(F.mse_loss(output, batch["y"].view_as(output)), len(output))


OBJECTIVES: dict[str, Objective] = {
    "binary": cross_entropy,
    "multiclass": cross_entropy,
    "multilabel": binary_cross_entropy,
    "regression": squared_error,
}


def objective_for(task: str) -> Objective:
    """The usual objective of a task.

    Raises:
        ConfigError: the task is none of binary, multiclass, multilabel and regression.
    """
    if task not in OBJECTIVES:
        raise ConfigError(f"task: must be one of {', '.join(OBJECTIVES)}, got {task!r}")
    return OBJECTIVES[task]


def per_example_losses(logits: Tensor, target: Tensor, task: str) -> Tensor:
    """Loss of each example (N,), in the unit of the task's objective."""
    if task in ("binary", "multiclass"):
        return F.cross_entropy(logits, target, reduction="none")
    if task == "multilabel":
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(-1)
    return (logits.squeeze(-1) - target).square()
