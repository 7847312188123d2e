"""The values that travel through a step: a batch, the clock, a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Batch = dict[str, Tensor]  # every tensor shares its first dimension, N


@dataclass(frozen=True, slots=True)
class Clock:
    """Where a stage is. Passed explicitly, so that nothing schedules itself from a hidden counter."""

    step: int
    total: int

    @property
    def fraction(self) -> float:
        """Progress through the stage, in [0, 1]."""
        return self.step / max(1, self.total)


def _no_terms() -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True, slots=True)
class Loss:
    """A differentiable mean and how many units (examples or tokens) it is the mean of.

    `weight` makes gradient accumulation exact when micro-batches hold unequal numbers of tokens: gradients are summed as
    `value * weight` and divided by the total weight once. It is a tensor where counting it would need a device sync.
    `terms` are detached scalars for the log; they stay on the device until the log is written.
    """

    value: Tensor  # () differentiable
    weight: float | Tensor = 1.0
    terms: Mapping[str, Tensor] = field(default_factory=_no_terms)

    def detached(self) -> Loss:
        """The same numbers without a graph."""
        return Loss(self.value.detach(), self.weight, {name: term.detach() for name, term in self.terms.items()})


def total_weight(losses: Sequence[Loss]) -> float | Tensor:
    """The sum of their weights to divide by; 1 where nothing has any weight, as of slices that hold no token to predict."""
    total = sum(loss.weight for loss in losses)
    return torch.where(total == 0, 1, total) if isinstance(total, Tensor) else total or 1.0


def mean(losses: Sequence[Loss]) -> Loss:
    """The weighted mean of several losses, term by term."""
    if len(losses) == 1:
        return losses[0]
    total = total_weight(losses)
    value = torch.stack([loss.value * loss.weight for loss in losses]).sum() / total
    terms = {
        name: torch.stack([loss.terms[name] * loss.weight for loss in losses]).sum() / total for name in losses[0].terms
    }
    return Loss(value, total, terms)


def size(batch: Batch) -> int:
    """N, the first dimension that all tensors of the batch share."""
    return len(next(iter(batch.values())))


def split(batch: Batch, parts: int) -> list[Batch]:
    """The batch cut along its first dimension into at most `parts` slices of equal size (the last may be shorter)."""
    if parts == 1:
        return [batch]
    rows = -(-size(batch) // parts)
    return [{key: value[at : at + rows] for key, value in batch.items()} for at in range(0, size(batch), rows)]
