"""The probe: at which heights to graft, how to pool, and a head fitted to convergence on frozen features.

One forward pass gives the features of every block boundary. Depths and pooling are compared by ridge scores on
rows not fitted on, the strength of the penalty by out-of-fold fits, and the last layer alone is fitted beside it for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from regraft.core.seeding import generator
from regraft.phases.choose.features import LAST, Features, Read, joined
from regraft.phases.choose.fit import Head, fit_head, in_row_space, solve
from regraft.phases.choose.gram import HeldOut, best_score, block_gram, score

CURVE_ROWS, SET_ROWS, FOLD_ROWS = 800, 3000, 1500  # rows that depths, combinations and penalties are compared on
PENALTIES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3)
POOL_SETS = (("mean",), ("mean", "max"), ("mean", "max", "first"), ("mean", "grid"))


@dataclass(frozen=True, kw_only=True)
class FittedReads:
    """A choice of reads with the head fitted on them."""

    reads: tuple[Read, ...]
    l2: float
    head: Head

    @property
    def depths(self) -> tuple[int, ...]:
        """Depths in use, lowest first."""
        return tuple(sorted({depth for depth, _ in self.reads}))

    @property
    def pools(self) -> tuple[str, ...]:
        """Ways of pooling in use, in order."""
        return tuple(dict.fromkeys(pool for _, pool in self.reads))

    def logits(self, features: Features) -> Tensor:
        """(N, C) of features read by `all_features`."""
        return self.head.logits(joined(features, self.reads))


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What the probe found."""

    chosen: FittedReads
    last: FittedReads  # the last layer alone, mean-pooled, as is usually done
    curve: tuple[dict[str, float | int], ...]  # {"depth", "score"}: leave-one-out ridge on one depth
    compared: tuple[dict[str, object], ...]  # {"depths", "pools", "score"}: the feature sets that were compared
    rows: int
    sentences: tuple[str, ...] = field(default=())


def fit_probe(
    features: Features,
    targets: Tensor,
    *,
    task: str,
    num_outputs: int,
    depths: str = "all",
    folds: int = 5,
    seed: int = 0,
) -> Probe:
    """Choose depths, pooling and penalty out of fold, and fit the head on all rows.

    Args:
        features: of the training rows, from `all_features`.
        targets: class ids (N,), 0/1 (N, C), or numbers (N,) standardised for regression; none missing.
        task: binary, multiclass, multilabel or regression.
        num_outputs: width of the head.
        depths: "all" compares every height, "last" fits the last layer only.
        folds: out-of-fold fits for each penalty, fewer where there are many rows.
        seed: of the rows that are compared on.
    """
    top = max(depth for depth, _ in features)
    last_reads = (LAST,) if LAST in features else ((top, "mean"),)
    curve = _curve(features, targets, task, num_outputs, seed)
    compared: list[tuple[float, tuple[Read, ...]]] = []
    if depths == "all" and len(features) > 1:
        pick = _sample(len(targets), SET_ROWS, seed)
        held_out = HeldOut({r: v[pick] for r, v in features.items()}, targets[pick], task=task, num_outputs=num_outputs)
        compared = [(held_out.best(reads), reads) for reads in feature_sets(features, curve)]
    reads = _best(compared, len(targets), features) if compared else last_reads
    chosen = _fitted(features, reads, targets, task, num_outputs, folds, seed)
    last = chosen if reads == last_reads else _fitted(features, last_reads, targets, task, num_outputs, folds, seed)
    return Probe(
        chosen=chosen,
        last=last,
        curve=tuple({"depth": depth, "score": value} for depth, value in curve.items()),
        compared=tuple(_described(reads, value) for value, reads in compared),
        rows=len(targets),
        sentences=_sentences(chosen, compared, curve, top),
    )


def _described(reads: tuple[Read, ...], value: float) -> dict[str, object]:
    pools = list(dict.fromkeys(pool for _, pool in reads))
    return {"depths": sorted({depth for depth, _ in reads}), "pools": pools, "score": value}


def refit(probe: FittedReads, features: Features, targets: Tensor, *, task: str, num_outputs: int) -> FittedReads:
    """The same reads and penalty fitted on more rows or on moved features, starting from the head there is."""
    x = joined(features, probe.reads)
    head = fit_head(x, targets, task=task, num_outputs=num_outputs, l2=probe.l2, start=probe.head, max_iterations=40)
    return FittedReads(reads=probe.reads, l2=probe.l2, head=head)


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


def _curve(features: Features, targets: Tensor, task: str, num_outputs: int, seed: int) -> dict[int, float]:
    """Leave-one-out score of each depth alone, mean-pooled, on a part of the rows."""
    pick = _sample(len(targets), CURVE_ROWS, seed)
    single = {depth: values[pick] for (depth, pool), values in features.items() if pool in ("mean", LAST[1])}
    return {
        depth: best_score(block_gram(values), targets[pick], task=task, num_outputs=num_outputs)
        for depth, values in sorted(single.items())
    }


def _best(compared: Sequence[tuple[float, tuple[Read, ...]]], rows: int, features: Features) -> tuple[Read, ...]:
    """The best-scoring set; among those within half a standard error of it, the one with the fewest features.

    Where there are more rows than were compared on it is the one with the most: their worth grows with the rows.
    """
    high = max(value for value, _ in compared)
    slack = 0.5 * math.sqrt(max(high * (1 - high), 1e-4) / (min(rows, SET_ROWS) / 4))
    close = [reads for value, reads in compared if value >= high - slack]
    sign = -1 if rows > SET_ROWS else 1
    return min(close, key=lambda reads: sign * sum(features[read].shape[1] for read in reads))


def _fitted(
    features: Features, reads: tuple[Read, ...], targets: Tensor, task: str, num_outputs: int, folds: int, seed: int
) -> FittedReads:
    x = joined(features, reads)
    l2 = choose_penalty(x, targets, task=task, num_outputs=num_outputs, folds=folds, seed=seed)
    return FittedReads(reads=reads, l2=l2, head=fit_head(x, targets, task=task, num_outputs=num_outputs, l2=l2))


def choose_penalty(x: Tensor, targets: Tensor, *, task: str, num_outputs: int, folds: int, seed: int) -> float:
    """The penalty with the best out-of-fold score on at most `FOLD_ROWS` rows.

    Among the penalties whose score is within half a standard error of the best, the one with the least out-of-fold loss is
    taken. A fit on n rows with the penalty `l2 sqrt(N / n)` stands for a fit on all N rows with `l2`: measured on banking77
    the best penalty did not depend on the rows, on sst2 it fell with their number.
    """
    pick = _sample(len(targets), FOLD_ROWS, seed + 1)
    x, y = in_row_space(x[pick]), targets[pick]
    num_folds = folds if len(pick) < FOLD_ROWS else 2
    fold = torch.arange(len(pick)) % num_folds
    outputs = {l2: torch.zeros(len(y), num_outputs) for l2 in PENALTIES}
    wanted: Sequence[float] = PENALTIES
    for k in range(num_folds):
        inside, held, start = fold != k, fold == k, None
        scale = (len(targets) / int(inside.sum())) ** 0.5
        for l2 in wanted:  # from strong to weak, each fit starting from the one before
            weight, bias = solve(
                x[inside], y[inside], task=task, num_outputs=num_outputs, l2=l2 * scale, start=start, max_iterations=25
            )
            start = Head(weight=weight, bias=bias, mean=torch.zeros(x.shape[1]), deviation=torch.ones(x.shape[1]))
            outputs[l2][held] = start.logits(x[held])
        if k == 0:  # the other folds look only near the first one's best
            best = min(PENALTIES, key=lambda l2: _loss(outputs[l2][held], y[held], task))
            at = PENALTIES.index(best)
            wanted = PENALTIES[max(0, at - 2) : at + 3] if len(pick) < FOLD_ROWS else PENALTIES[max(0, at - 1) : at + 2]
    outputs = {l2: outputs[l2] for l2 in wanted}
    scores = {l2: score(_probability(out, task), y, task) for l2, out in outputs.items()}
    losses = {l2: _loss(out, y, task) for l2, out in outputs.items()}
    best = max(scores.values())
    slack = 0.5 * math.sqrt(max(best * (1 - best), 1e-4) / len(y))
    return min((l2 for l2 in scores if scores[l2] >= best - slack), key=losses.__getitem__)


def _probability(outputs: Tensor, task: str) -> Tensor:
    return outputs.sigmoid() if task == "multilabel" else outputs


def _loss(outputs: Tensor, targets: Tensor, task: str) -> float:
    if task == "multilabel":
        return float(F.binary_cross_entropy_with_logits(outputs, targets))
    if task == "regression":
        return float(F.mse_loss(outputs.squeeze(1), targets))
    return float(F.cross_entropy(outputs, targets))


def _sample(rows: int, most: int, seed: int) -> Tensor:
    """Indices of at most `most` rows, a function of the seed."""
    return torch.randperm(rows, generator=generator(seed, 17))[:most]


def _sentences(
    chosen: FittedReads, compared: Sequence[tuple[float, tuple[Read, ...]]], curve: dict[int, float], top: int
) -> tuple[str, ...]:
    if not compared:
        return ("the model offers one place to read, so no heights were compared",)
    best = max(curve, key=lambda depth: curve[depth])
    lines = [
        f"one depth alone: the best is {best} of {top} ({curve[best]:.3f} leave-one-out), the last gives {curve[top]:.3f}"
    ]
    depths, pools = ", ".join(map(str, chosen.depths)), " and ".join(chosen.pools)
    plural = "s" * (len(chosen.depths) > 1)
    lines.append(f"the head reads depth{plural} {depths}, pooled by {pools}; penalty {chosen.l2:g}")
    if chosen.depths[-1] < top:
        lines.append(f"nothing above depth {chosen.depths[-1]} is read, so the model is cut off there")
    return tuple(lines)
