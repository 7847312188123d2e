"""Comparing feature sets without fitting a head for each: ridge scores from inner products that are computed once.

One depth alone is judged by exact leave-one-out predictions, combinations of depths on a held-out quarter of the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from regraft.phases.choose.fit import Problem, standardised

STRENGTHS = tuple(10.0**k for k in (-3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 2))  # times the mean of the diagonal
HELD_OUT_STRENGTHS = (0.03, 0.3, 3.0)
Read = tuple[int, str]


def block_gram(*features: Tensor) -> Tensor:
    """(N, N) inner products of standardised features (N, F_i), side by side."""
    x = standardised(features).x
    return x @ x.T


def one_hot(targets: Tensor, problem: Problem) -> Tensor:
    """Targets as columns (N, C): class indicators, labels, or the number itself."""
    if problem.task in ("binary", "multiclass"):
        return torch.nn.functional.one_hot(targets, problem.num_outputs).float()
    return targets.float().reshape(len(targets), -1)


def leave_one_out(gram: Tensor, columns: Tensor, strengths: Sequence[float] = STRENGTHS) -> list[Tensor]:
    """Leave-one-out predictions (N, C) of ridge regression for each strength, exactly.

    With `H = K (K + lambda I)^-1` and `a = (K + lambda I)^-1 y`, the prediction for row i by a fit without it is
    `y_i - a_i / [(K + lambda I)^-1]_ii` (Rifkin and Lippert, 2007, "Notes on regularized least squares", sec. 4).

    Args:
        gram: (N, N) of standardised features.
        columns: (N, C) targets as columns; their mean is taken off and put back.
        strengths: lambda as multiples of the mean diagonal of `gram`.
    """
    centre = columns.mean(0)
    scaled = gram / gram.diagonal().mean()
    values, vectors = torch.linalg.eigh(scaled)
    rotated, squares = vectors.T @ (columns - centre), vectors.square()
    out: list[Tensor] = []
    for strength in strengths:
        inverse = 1.0 / (values.clamp(min=0) + strength)
        alpha, diagonal = vectors @ (inverse[:, None] * rotated), squares @ inverse
        out.append(columns - alpha / diagonal[:, None])
    return out


def score(predictions: Tensor, targets: Tensor, task: str) -> float:
    """Higher is better: accuracy, mean per-label accuracy balanced over 0 and 1, or R^2, the mean over several targets."""
    if task in ("binary", "multiclass"):
        return float((predictions.argmax(1) == targets).float().mean())
    if task == "multilabel":
        hit = ((predictions > 0.5) == (targets > 0.5)).float()
        positive, negative = targets > 0.5, targets <= 0.5
        return float(0.5 * (hit[positive].mean() + hit[negative].mean()))
    residual = predictions.reshape(targets.shape) - targets
    unexplained = residual.square().mean(0) / targets.float().var(0, correction=0).clamp(min=1e-12)
    return float(1.0 - unexplained.mean())


def best_score(gram: Tensor, targets: Tensor, problem: Problem) -> float:
    """The best leave-one-out score over the strengths."""
    return max(score(p, targets, problem.task) for p in leave_one_out(gram, one_hot(targets, problem)))


class HeldOut:
    """Ridge scores of combinations of reads on a held-out quarter of the rows, each for the price of some Cholesky factors.

    Inner products of rows add up over reads, so those of reads that the combinations always take together are computed
    once, as (N, rows fitted on), and summed.
    """

    def __init__(
        self,
        features: Mapping[Read, Tensor],
        targets: Tensor,
        problem: Problem,
        combinations: Sequence[Sequence[Read]],
    ) -> None:
        rows = len(targets)
        self.task, self.targets = problem.task, targets
        self.fitted, self.held = slice(0, rows - rows // 4), slice(rows - rows // 4, rows)
        columns = one_hot(targets, problem)[self.fitted]
        self.centre = columns.mean(0)
        self.moments = columns - self.centre
        together: dict[tuple[int, ...], list[Read]] = {}
        for read in features:
            members = tuple(n for n, reads in enumerate(combinations) if read in reads)
            together.setdefault(members, []).append(read)
        self.grams: dict[frozenset[Read], Tensor] = {}
        for members, reads in together.items():
            if members:
                x = standardised([features[read] for read in reads]).x
                self.grams[frozenset(reads)] = x @ x[self.fitted].T

    def best(self, reads: Sequence[Read]) -> float:
        """The best held-out score of one of the combinations over the strengths."""
        wanted = set(reads)
        gram = torch.zeros_like(next(iter(self.grams.values())))
        for group, part in self.grams.items():
            if group <= wanted:
                gram += part
        inside, across = gram[self.fitted], gram[self.held]
        scale = float(inside.diagonal().mean())

        def at(strength: float) -> float:
            ridge = inside.clone()
            ridge.diagonal().add_(strength * scale)
            predicted = self.centre + across @ torch.cholesky_solve(self.moments, torch.linalg.cholesky(ridge))
            return score(predicted, self.targets[self.held], self.task)

        weak, middle, strong = HELD_OUT_STRENGTHS
        found = (at(weak), at(middle))
        return found[0] if found[0] > found[1] else max(found[1], at(strong))  # it has one peak over the strengths
