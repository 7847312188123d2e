"""The probe: at which heights to graft, how to pool, and a head fitted to convergence on frozen features.

One forward pass gives the features of every block boundary. Depths and pooling are compared by ridge scores on
rows not fitted on, the strength of the penalty by out-of-fold fits, and the last layer alone is fitted beside it for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from regraft.core.seeding import generator
from regraft.losses.supervised import per_example_losses
from regraft.phases.choose.features import LAST, Features, Read, joined
from regraft.phases.choose.fit import SETTLED, Head, Problem, Standardised, fit_head, in_row_space, standardised
from regraft.phases.choose.gram import HeldOut, best_score, block_gram

CURVE_ROWS, SET_ROWS, FOLD_ROWS = 800, 3000, 1500  # rows that depths, combinations and penalties are compared on
PATH_ROWS = 3000  # rows that the fits of a path are made on
PENALTIES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3)
DECADES = (1.0, 0.1, 0.01, 1e-3, 1e-4)  # penalties of a path
WIDE, ON_PATH = 256, 1e-4  # features from which on the fits of a path are made on some rows, and end early
POOL_SETS = (
    ("mean",), ("mean", "max"), ("mean", "max", "first"), ("mean", "grid"), ("last",), ("mean", "max", "last"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Heights:
    """What a head reads."""

    reads: tuple[Read, ...]

    @property
    def depths(self) -> tuple[int, ...]:
        """Depths in use, lowest first."""
        return tuple(sorted({depth for depth, _ in self.reads}))

    @property
    def pools(self) -> tuple[str, ...]:
        """Ways of pooling in use, in order."""
        return tuple(dict.fromkeys(pool for _, pool in self.reads))

    def of(self, problem: Problem, *blocks: Features) -> Standardised:
        """The features it reads of blocks of rows, below each other, standardised by the first block."""
        parts = ([block[read] for read in self.reads] for block in blocks)
        return standardised(*parts, half=problem.iterative)


@dataclass(frozen=True, kw_only=True)
class FittedReads(Heights):
    """Heights with the head fitted on them, and how strongly its weights are held down."""

    l2: float
    head: Head

    def logits(self, features: Features) -> Tensor:
        """(N, C) of features read by `all_features`."""
        return self.head.logits(joined(features, self.reads))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """At which heights to graft, found out of fold."""

    chosen: Heights
    last: Heights  # the last layer alone, mean-pooled, as is usually done
    curve: tuple[dict[str, float | int], ...]  # {"depth", "score"}: leave-one-out ridge on one depth
    compared: tuple[dict[str, object], ...]  # {"depths", "pools", "score"}: the feature sets that were compared
    rows: int
    sentences: tuple[str, ...] = field(default=())


def choose_heights(
    features: Features,
    targets: Tensor,
    problem: Problem,
    *,
    depths: str = "all",
    rows: int | None = None,
    seed: int = 0,
) -> Choice:
    """Choose depths and pooling by ridge scores on rows that were not fitted on.

    Args:
        features: of the training rows, from `all_features`.
        targets: class ids (N,), 0/1 (N, C), or numbers (N,) standardised for regression; none missing.
        problem: task and width of the head.
        depths: "all" compares every height, "last" takes the last layer.
        rows: training rows there are, where the features are those of a sample.
        seed: of the rows that are compared on.
    """
    rows = len(targets) if rows is None else rows
    top = max(depth for depth, _ in features)
    last_reads = (LAST,) if LAST in features else ((top, "mean"),)
    compared_depths = features if depths == "all" else {read: features[read] for read in last_reads}
    curve = _curve(compared_depths, targets, problem, seed)
    compared: list[tuple[float, tuple[Read, ...]]] = []
    if depths == "all" and len(features) > 1:
        pick = _sample(len(targets), SET_ROWS, seed)
        sets = feature_sets(features, curve)
        held_out = HeldOut({read: values[pick] for read, values in features.items()}, targets[pick], problem, sets)
        compared = [(held_out.best(reads), reads) for reads in sets]
    reads = _best(compared, rows, features) if compared else last_reads
    chosen = Heights(reads=reads)
    return Choice(
        chosen=chosen,
        last=Heights(reads=last_reads),
        curve=tuple({"depth": depth, "score": value} for depth, value in curve.items()),
        compared=tuple(_described(wanted, value) for value, wanted in compared),
        rows=rows,
        sentences=_sentences(chosen, compared, curve, top)
        if depths == "all"
        else ("the last layer alone is read, as asked",),
    )


def fitted(
    heights: Heights,
    features: Standardised,
    targets: Tensor,
    problem: Problem,
    *,
    l2: float,
    start: Head | None = None,
    max_iterations: int = 100,
    tolerance: float = SETTLED,
) -> FittedReads:
    """The head on `heights.of(...)` (N, F) and targets (N, ...); see `fit_head`."""
    head = fit_head(features, targets, problem, l2=l2, start=start, max_iterations=max_iterations, tolerance=tolerance)
    return FittedReads(reads=heights.reads, l2=l2, head=head)


def fitted_on_path(
    heights: Heights,
    features: Standardised,
    targets: Tensor,
    problem: Problem,
    *,
    loss: Callable[[FittedReads], float],
    seed: int,
) -> FittedReads:
    """The head with the penalty of least `loss` on a path from strong to weak ones, each fit starting from the one before.

    The path goes down by decades and ends where the loss rises; of many features on at most `PATH_ROWS` rows, and from there
    one fit is made on all N. Within a decade the loss is flat: measured on banking77 and sst2 it moves by less than 2 %.
    """
    wide = features.x.shape[1] > WIDE
    pick = _sample(len(targets), PATH_ROWS if wide else len(targets), seed)
    some, answers = replace(features, x=features.x[pick]), targets[pick]
    tolerance = ON_PATH if wide else SETTLED
    best = fitted(heights, some, answers, problem, l2=DECADES[0], tolerance=tolerance)
    least = loss(best)
    for l2 in DECADES[1:]:
        weaker = fitted(heights, some, answers, problem, l2=l2, start=best.head, tolerance=tolerance)
        now = loss(weaker)
        if now >= least:
            break
        best, least = weaker, now
    return fitted(heights, features, targets, problem, l2=best.l2, start=best.head, tolerance=tolerance)


def _described(reads: tuple[Read, ...], value: float) -> dict[str, object]:
    pools = list(dict.fromkeys(pool for _, pool in reads))
    return {"depths": sorted({depth for depth, _ in reads}), "pools": pools, "score": value}


def feature_sets(features: Features, curve: dict[int, float]) -> list[tuple[Read, ...]]:
    """Combinations of depths and pools worth comparing: one depth, all, the upper half, and up to or from the best depth."""
    depths = sorted(curve)
    best = max(depths, key=lambda depth: curve[depth])
    half = depths[len(depths) // 2 :]
    groups = [[depths[-1]], [best], depths, half, [d for d in depths if d <= best], [d for d in depths if d >= best]]
    sets: dict[tuple[Read, ...], None] = {}
    for group in groups:
        for pools in POOL_SETS:
            reads = tuple((d, p) for d in group for p in pools if (d, p) in features)
            if reads:
                sets[reads] = None
    return list(sets)


def _curve(features: Features, targets: Tensor, problem: Problem, seed: int) -> dict[int, float]:
    """Leave-one-out score of each depth alone, mean-pooled, on a part of the rows."""
    pick = _sample(len(targets), CURVE_ROWS, seed)
    single = {depth: values[pick] for (depth, pool), values in features.items() if pool in ("mean", LAST[1])}
    return {depth: best_score(block_gram(values), targets[pick], problem) for depth, values in sorted(single.items())}


def _best(compared: Sequence[tuple[float, tuple[Read, ...]]], rows: int, features: Features) -> tuple[Read, ...]:
    """The best-scoring set; among those within half a standard error of it, the one with the fewest features.

    Where there are more rows than were compared on it is the one with the most: their worth grows with the rows.
    """
    high = max(value for value, _ in compared)
    slack = 0.5 * math.sqrt(max(high * (1 - high), 1e-4) / (min(rows, SET_ROWS) / 4))
    close = [reads for value, reads in compared if value >= high - slack]
    sign = -1 if rows > SET_ROWS else 1
    return min(close, key=lambda reads: sign * sum(features[read].shape[1] for read in reads))


def choose_penalty(
    features: Features, reads: Sequence[Read], targets: Tensor, problem: Problem, *, folds: int, seed: int
) -> float:
    """The strongest penalty with about the least out-of-fold loss on at most `FOLD_ROWS` rows.

    A fit on n rows with the penalty `l2 sqrt(N / n)` stands for a fit on all N rows with `l2`: measured on banking77
    the best penalty did not depend on the rows, on sst2 it fell with their number.
    """
    pick = _sample(len(targets), FOLD_ROWS, seed + 1)
    x, y = in_row_space(standardised([features[read][pick] for read in reads]).x), targets[pick]
    num_folds = folds if len(pick) < FOLD_ROWS else 2
    fold = torch.arange(len(pick)) % num_folds
    losses = {l2: torch.zeros(len(y)) for l2 in PENALTIES}
    wanted: Sequence[float] = PENALTIES
    for k in range(num_folds):
        inside, held, start = fold != k, fold == k, None
        scale = (len(targets) / int(inside.sum())) ** 0.5
        rows, answers = Standardised.plain(x[inside]), y[inside]
        for l2 in wanted:  # from strong to weak, each fit starting from the one before
            start = fit_head(rows, answers, problem, l2=l2 * scale, start=start, max_iterations=40, tolerance=1e-6)
            losses[l2][held] = per_example_losses(start.logits(x[held]), y[held], problem.task)
        if k == 0:  # the other folds look only near the first one's best
            at = PENALTIES.index(min(PENALTIES, key=lambda l2: float(losses[l2][held].mean())))
            wanted = PENALTIES[max(0, at - 2) : at + 3]
    return _strongest({l2: losses[l2] for l2 in wanted})


def _strongest(losses: Mapping[float, Tensor]) -> float:
    """Of out-of-fold losses (N,) by penalty: the strongest whose mean is above the least by half a standard error at most.

    Where the loss is flat the stronger penalty costs nothing, states its probabilities more soberly, and is fitted sooner
    (the rule of one standard error is that of Breiman et al. 1984, Classification and Regression Trees, section 3.4.3).
    """
    best = min(losses, key=lambda l2: float(losses[l2].mean()))
    worse = {l2: each - losses[best] for l2, each in losses.items()}  # row by row: what all find hard is no noise
    return max(l2 for l2, gap in worse.items() if gap.mean() <= 0.5 * gap.std() / math.sqrt(len(gap)))


def _sample(rows: int, most: int, seed: int) -> Tensor:
    """Indices of at most `most` rows, a function of the seed."""
    return torch.randperm(rows, generator=generator(seed, 17))[:most]


def _sentences(
    chosen: Heights, compared: Sequence[tuple[float, tuple[Read, ...]]], curve: dict[int, float], top: int
) -> tuple[str, ...]:
    if not compared:
        return ("the model offers one place to read, so no heights were compared",)
    best = max(curve, key=lambda depth: curve[depth])
    lines = [
        f"one depth alone: the best is {best} of {top} ({curve[best]:.3f} leave-one-out), the last gives {curve[top]:.3f}"
    ]
    depths, pools = ", ".join(map(str, chosen.depths)), " and ".join(chosen.pools)
    plural = "s" * (len(chosen.depths) > 1)
    lines.append(f"the head reads depth{plural} {depths}, pooled by {pools}")
    if chosen.depths[-1] < top:
        lines.append(f"nothing above depth {chosen.depths[-1]} is read, so the model is cut off there")
    return tuple(lines)
