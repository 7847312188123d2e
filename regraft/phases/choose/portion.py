"""How much of the frozen features is read: all heights of all rows where they are few, else what decides and what is fitted on.

The features of every boundary take some 30 KB a row, those that a head reads a tenth of that, so of many rows the heights are
compared on a sample, and the head's own heights are then read for as many rows as there is room for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regraft.core.precision import Precision
from regraft.data.encoded import Encoded
from regraft.data.some import Rows
from regraft.data.splits import limited
from regraft.models.graft import Graft
from regraft.phases.choose.features import LAST, Features, Read, all_features
from regraft.phases.choose.fit import Problem
from regraft.phases.choose.probe import Choice, choose_heights

Curve = Sequence[Mapping[str, Any]]  # {"depth", "score"} of each depth alone
ROOM = 1 << 30  # bytes that the features of all heights may take
ROOM_OF_HEADS = 1 << 29  # and those that heads are fitted on, of more rows than that
COMPARED = 8192  # rows that heights are compared on where not all are read


@dataclass(frozen=True, kw_only=True)
class Portion:
    """Which training rows are read at which heights."""

    rows: np.ndarray | None = None  # ascending positions; None: all
    reads: tuple[Read, ...] | None = None  # None: every boundary, pooled in every way
    half: bool = False  # kept in bf16

    def of(self, encoded: Encoded) -> Encoded:
        """The examples that are read."""
        return encoded if self.rows is None else Rows(encoded, self.rows)

    def targets(self, targets: Tensor) -> Tensor:
        """Their targets."""
        return targets if self.rows is None else targets[torch.from_numpy(self.rows)]


@dataclass(frozen=True, kw_only=True)
class Room:
    """What decides how much is read."""

    widths: Mapping[Read, int]  # features of each read
    targets: Tensor  # of the N training rows
    problem: Problem
    seed: int
    beside: int = 0  # rows that are read as well: those of validation
    looks: int = 1  # how often each row is read: once, and for each augmented view

    def to_compare(self) -> Portion:
        """What heights are compared on: everything, or a sample of the rows."""
        each = 4 * sum(self.widths.values()) * self.looks
        if each * (len(self.targets) + self.beside) <= ROOM:
            return Portion()
        return Portion(rows=sampled(self.targets, self.problem, COMPARED, seed=self.seed))

    def to_fit(self, reads: Sequence[Read]) -> Portion:
        """What a head that reads these is fitted on: all rows, or as many as have room, in bf16 unless they answer numbers.

        A fit in steps rounds large matrices to bf16 in any case, see `fit.standardised`.
        """
        each, rows = 4 * sum(self.widths[read] for read in reads) * self.looks, len(self.targets) + self.beside
        if each * rows <= ROOM_OF_HEADS:
            return Portion(reads=tuple(reads))
        half = self.problem.iterative
        most = max(COMPARED, ROOM_OF_HEADS * (2 if half else 1) // each - self.beside)
        return Portion(rows=sampled(self.targets, self.problem, most, seed=self.seed), reads=tuple(reads), half=half)


@dataclass(frozen=True, kw_only=True)
class Found:
    """Heights, and what was read of the training rows to fit heads there."""

    choice: Choice
    portion: Portion
    features: Features
    sentences: tuple[str, ...]


def choose_in(room: Room, read: Callable[[Portion], Features], *, depths: str) -> Found:
    """The heights to graft at, and the training rows' features there.

    Args:
        room: decides whether all is read at once, or heights are compared on a sample and then read where they are chosen.
        read: the features of a portion.
        depths: see `choose_heights`.
    """
    compared = room.to_compare()
    features = read(compared)
    rows = len(room.targets)
    choice = choose_heights(
        features, compared.targets(room.targets), room.problem, depths=depths, rows=rows, seed=room.seed
    )
    if compared.rows is None:
        return Found(choice=choice, portion=compared, features=features, sentences=choice.sentences)
    portion = room.to_fit(kept(choice.chosen.reads, choice.last.reads, choice.curve, features))
    sentences = (*choice.sentences, _said(compared, portion, rows))
    return Found(choice=choice, portion=portion, features=read(portion), sentences=sentences)


def kept(chosen: Sequence[Read], last: Sequence[Read], curve: Curve, reads: Iterable[Read]) -> list[Read]:
    """What is read where not everything is: what heads are fitted on, and what labels are judged on."""
    return sorted({*chosen, *last, best_read(curve, reads)})


def best_read(curve: Curve, reads: Iterable[Read]) -> Read:
    """The depth that is best alone, mean-pooled."""
    best = max(curve, key=lambda point: point["score"])["depth"]
    return next((depth, pool) for depth, pool in reads if depth == best and pool in ("mean", LAST[1]))


def sampled(targets: Tensor, problem: Problem, most: int, *, seed: int) -> np.ndarray | None:
    """Ascending positions of a sample of `most` rows in which each class keeps its share; None: they are no more than that."""
    if len(targets) <= most:
        return None
    classes = problem.task in ("binary", "multiclass")
    strata = targets.numpy() if classes else np.zeros(len(targets), np.int64)
    return limited(strata, limit=most, seed=seed)


def widths_of(
    model: nn.Module, encoded: Encoded, *, precision: Precision, pools: Sequence[str] | None
) -> dict[Read, int]:
    """Features of each read of a model; of one that is no graft an example is read to find out."""
    if isinstance(model, Graft):
        return model.all_reads(pools)
    found = all_features(model, Rows(encoded, np.arange(1)), precision=precision)
    return {read: values.shape[1] for read, values in found.items()}


def _said(compared: Portion, fitted: Portion, rows: int) -> str:
    """What was read of the training rows, where that is not all heights of all of them."""
    some = 0 if compared.rows is None else len(compared.rows)
    heights = f"heights were compared on {some:,} of {rows:,} training rows"
    if fitted.rows is None:
        return f"{heights}; heads are fitted on all"
    return f"{heights}; heads are fitted on {len(fitted.rows):,}, as many as have room in {ROOM_OF_HEADS >> 20} MiB"
