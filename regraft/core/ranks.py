"""Several processes that make each step together: every one takes a share of the batch, and gradients are summed over them.

All of them walk through the same recipe with the same seed, so batches, schedules and decisions are the same everywhere without
a word being exchanged; what is exchanged in a step is the sum of the gradients, and with it the loss of the whole batch. The
gradient is that of one process that cuts the batch into slices (Li et al. 2020, arXiv:2006.15704, calls it data parallel).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from regraft.core.micro_batch import randomness, restore_randomness
from regraft.core.seeding import seed_default
from regraft.core.values import Batch, Loss, split
from regraft.errors import RunError

BUCKET = 8_000_000  # numbers that are summed in one message: more would only hold more memory


class Ranks(Protocol):
    """This process, and the others that make the same steps."""

    @property
    def rank(self) -> int:
        """Of this process; 0 is the first."""
        ...

    @property
    def count(self) -> int:
        """Of all of them."""
        ...

    def sum(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes, with the same bits in each.

        Raises:
            RankLost: one of them is gone.
        """
        ...


class RankLost(RunError):
    """Another process of the run has ended before its time; what was trained since the last checkpoint is lost."""


def share_of(batch: Batch, ranks: Ranks) -> tuple[Batch, float]:
    """The slice of a batch that this process takes, and by what its weight is multiplied.

    Where there are more processes than examples the last ones repeat the first example with weight 0.
    """
    parts = split(batch, ranks.count)
    if ranks.rank < len(parts):
        return parts[ranks.rank], 1.0
    return {key: value[:1] for key, value in batch.items()}, 0.0


@contextmanager
def own_numbers(ranks: Ranks, device: torch.device) -> Generator[None]:
    """Inside, dropout draws other numbers in each process; after it the generators are again the same in all."""
    number = int(torch.randint(1 << 62, ()))
    before = randomness(device)
    seed_default(number, ranks.rank)
    yield
    restore_randomness(device, before)


def whole_gradient(ranks: Ranks, params: Sequence[nn.Parameter], losses: Sequence[Loss]) -> Loss:
    """Sum what the processes have in `.grad`; the mean loss of the whole batch, whose weight the gradients are to be divided by.

    A parameter gets a gradient where any process has one for it.

    Args:
        ranks: the processes.
        params: the same in all of them, in the same order.
        losses: of this process's slices, with their weights, the terms alike everywhere.
    """
    weights = [torch.as_tensor(loss.weight, dtype=torch.float64) for loss in losses]
    sums = [_weighted([loss.value for loss in losses], weights)]
    sums += [_weighted([loss.terms[name] for loss in losses], weights) for name in losses[0].terms]
    there = torch.tensor([parameter.grad is not None for parameter in params], dtype=torch.float64)
    numbers = torch.cat([torch.stack([torch.stack(weights).sum(), *sums]).cpu(), there])
    ranks.sum(numbers)
    wanted = numbers[1 + len(sums) :]
    grads = [_gradient(p) for p, times in zip(params, wanted, strict=True) if times > 0]
    for bucket in _buckets(grads):
        together = torch.cat([grad.reshape(-1) for grad in bucket])
        ranks.sum(together)
        at = 0
        for grad in bucket:
            grad.copy_(together[at : at + grad.numel()].view_as(grad))
            at += grad.numel()
    weight = float(numbers[0]) or 1.0  # 0 where no process has anything to learn from
    value, *terms = (numbers[1 : 1 + len(sums)] / weight).float()
    return Loss(value, weight, dict(zip(losses[0].terms, terms, strict=True)))


def _weighted(values: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.double() * weight for value, weight in zip(values, weights, strict=True)]).sum()


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _buckets(grads: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one type that are summed together."""
    bucket: list[Tensor] = []
    held = 0
    for grad in grads:
        if bucket and (grad.dtype != bucket[0].dtype or held + grad.numel() > BUCKET):
            yield bucket
            bucket, held = [], 0
        bucket.append(grad)
        held += grad.numel()
    if bucket:
        yield bucket
