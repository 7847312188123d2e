"""The objectives of supervised training, one for each task: each calls the model on a batch and compares with `y`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.core import Batch, Clock, Loss, Objective, forward
from regraft.errors import ConfigError

OTHER, SHARE = "other_y", "share"  # of mixed examples (N,): the second class id, and the share of the first


def cross_entropy(model: nn.Module, batch: Batch, clock: Clock) -> Loss:
    """Mean cross-entropy in nats of logits (N, C) against class ids `y` (N,); rows with y = -1 do not count.

    A batch of mixed examples has a second id in `other_y`, which counts as 1 - `share`.
    """
    logits, target = forward(model, batch).float(), batch["y"]
    if SHARE in batch:
        return _mixed_cross_entropy(logits, target, batch[OTHER], batch[SHARE])
    count = (target >= 0).sum().clamp(min=1)
    value = F.cross_entropy(logits, target, ignore_index=-1, reduction="sum") / count
    accuracy = (logits.detach().argmax(-1) == target).sum() / count  # no class is called -1
    return Loss(value, count, {"accuracy": accuracy})


def _mixed_cross_entropy(logits: Tensor, first: Tensor, second: Tensor, share: Tensor) -> Loss:
    """`share` of the cross-entropy against `first` and the rest against `second`; `accuracy` is against the larger part."""
    total, weight = logits.new_zeros(()), logits.new_zeros(())
    for target, part in ((first, share), (second, 1 - share)):
        total = total + (part * F.cross_entropy(logits, target, ignore_index=-1, reduction="none")).sum()
        weight = weight + (part * (target >= 0)).sum()
    weight = weight.clamp(min=1e-6)
    larger = torch.where(share >= 0.5, first, second)
    accuracy = (logits.detach().argmax(-1) == larger).sum() / (larger >= 0).sum().clamp(min=1)
    return Loss(total / weight, weight, {"accuracy": accuracy})


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
    each = (logits.reshape(target.shape) - target).square()
    return each.mean(-1) if each.ndim == 2 else each
