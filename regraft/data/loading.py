"""Which examples make up which batch: a pure function of (seed, step), with length buckets for ragged examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from regraft.core.seeding import mix

REAL_SHARE = 0.95  # of the tokens of a padded batch, over an epoch
MEGA_BATCHES = (
    50  # batches that are sorted by length together: large enough to fill buckets, small enough to stay random
)


@dataclass(frozen=True)
class Plan:
    """The batches of one epoch: `order[starts[k] : starts[k + 1]]` are the rows of batch k."""

    order: np.ndarray  # (N,) int64, each example once
    starts: np.ndarray  # (B + 1,) int64

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.starts) - 1

    def batch(self, index: int) -> np.ndarray:
        """Rows of one batch, (M,) int64."""
        return self.order[self.starts[index] : self.starts[index + 1]]


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of 0..n-1, (n,) int64, that depends on nothing but the three arguments."""
    return np.random.default_rng(mix(seed, epoch)).permutation(n)


def plain_batches(order: np.ndarray, batch_size: int) -> Plan:
    """Consecutive batches of an order; the last one is short where the size does not divide."""
    return Plan(order, np.append(np.arange(0, len(order), batch_size, dtype=np.int64), len(order)))


def bucketed_batches(
    lengths: np.ndarray,
    batch_size: int,
    seed: int,
    epoch: int,
    *,
    real_share: float = REAL_SHARE,
    longest_first: bool = False,
) -> Plan:
    """A shuffled epoch in which examples of like length meet, so that at least `real_share` of padded tokens are real.

    The shuffled examples are cut into mega-batches, sorted by length inside each, cut into batches, and the batches are
    shuffled. A mega-batch is 50 batches, doubled until the share is met or it is the whole epoch.

    Args:
        lengths: (N,) tokens per example.
        batch_size: examples per batch.
        seed: of the run.
        epoch: 0, 1, 2, ...
        real_share: sum of lengths over sum of (batch size x longest in the batch), to be met over the epoch.
        longest_first: the first epoch begins with the batch of the most padded tokens: memory that does not suffice shows at
            once, and the heap has its size before the optimizer's state comes to lie in it.
    """
    n = len(lengths)
    shuffled = epoch_order(n, seed, epoch)
    mega = MEGA_BATCHES
    while True:
        plan = plain_batches(_sorted_inside(shuffled, lengths, mega * batch_size), batch_size)
        if mega * batch_size >= n or token_share(lengths, plan) >= real_share:
            sequence = np.random.default_rng(mix(seed, epoch, 1)).permutation(len(plan))
            if longest_first and epoch == 0:
                largest = int(padded_tokens(lengths, plan).argmax())
                sequence = np.append(largest, sequence[sequence != largest])
            return _in_sequence(plan, sequence)
        mega *= 2


def token_share(lengths: np.ndarray, plan: Plan) -> float:
    """Share of real tokens, in (0, 1], when each batch of a plan is padded to its longest example."""
    if len(plan) == 0:
        return 1.0
    return float(lengths[plan.order].sum(dtype=np.int64) / padded_tokens(lengths, plan).sum(dtype=np.int64))


def padded_tokens(lengths: np.ndarray, plan: Plan) -> np.ndarray:
    """(B,) tokens of each batch of a plan that has some, padded to its longest example."""
    return np.maximum.reduceat(lengths[plan.order], plan.starts[:-1]) * np.diff(plan.starts)


def _sorted_inside(order: np.ndarray, lengths: np.ndarray, size: int) -> np.ndarray:
    """The order with every run of `size` examples sorted by length; equals keep their shuffled order."""
    longest = int(lengths.max(initial=0)) + 1
    key = np.arange(len(order), dtype=np.int64) // size * longest + lengths[order]
    return order[np.argsort(key, kind="stable")]


def _in_sequence(plan: Plan, sequence: np.ndarray) -> Plan:
    """The same batches in another sequence (B,)."""
    sizes = np.diff(plan.starts)
    starts = np.append(0, np.cumsum(sizes[sequence]))
    offsets = np.repeat(plan.starts[:-1][sequence] - starts[:-1], sizes[sequence])
    return Plan(plan.order[offsets + np.arange(len(plan.order))], starts)


class BatchOrder:
    """`batch_at(step)` for endless epochs over n examples. Holds the plan of one epoch, which can always be made again."""

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        *,
        shuffle: bool = True,
        lengths: np.ndarray | None = None,
        longest_first: bool = False,
    ) -> None:
        """Order of n examples; with `lengths` (n,) in length buckets, which needs `shuffle`, see `bucketed_batches`."""
        if n < 1 or batch_size < 1:
            raise ValueError(
                f"batches need at least one example and a batch size of at least 1, got {n} and {batch_size}"
            )
        self.n, self.batch_size, self.seed, self.shuffle, self.lengths = n, batch_size, seed, shuffle, lengths
        self.longest_first = longest_first
        self._kept: tuple[int, Plan] | None = None

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-self.n // self.batch_size)

    def epoch(self, step: int) -> int:
        """The epoch that a step belongs to, from 0."""
        return step // len(self)

    def plan(self, epoch: int) -> Plan:
        """All batches of an epoch."""
        if not self.shuffle:
            epoch = 0
        if self._kept is None or self._kept[0] != epoch:
            self._kept = (epoch, self._planned(epoch))
        return self._kept[1]

    def _planned(self, epoch: int) -> Plan:
        if not self.shuffle:
            return plain_batches(np.arange(self.n, dtype=np.int64), self.batch_size)
        if self.lengths is not None:
            return bucketed_batches(self.lengths, self.batch_size, self.seed, epoch, longest_first=self.longest_first)
        return plain_batches(epoch_order(self.n, self.seed, epoch), self.batch_size)

    def batch_at(self, step: int) -> np.ndarray:
        """Positions (M,) int64 of the examples of one step, a function of (seed, step)."""
        return self.plan(self.epoch(step)).batch(step % len(self))


def in_length_order(lengths: np.ndarray, *, max_tokens: int, max_examples: int) -> Iterator[np.ndarray]:
    """Rows (M,) of each batch, longest examples first, as many as fit into `max_tokens` padded tokens (at least one).

    The longest come first so that memory runs out at the start or not at all.
    """
    order = np.argsort(-lengths, kind="stable")
    at = 0
    while at < len(order):
        longest = max(1, int(lengths[order[at]]))
        size = min(max_examples, max(1, max_tokens // longest))
        yield order[at : at + size]
        at += size
