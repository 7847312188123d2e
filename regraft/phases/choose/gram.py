"""Comparing feature sets without fitting a head for each: ridge scores from inner products that are computed once.

One depth alone is judged by exact leave-one-out predictions, combinations of depths on a held-out quarter of the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from regraft.models.heads import standardisation

STRENGTHS = tuple(10.0**k for k in (-3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 2))  # times the mean of the diagonal
HELD_OUT_STRENGTHS = (0.03, 0.3, 3.0)
Read = tuple[int, str]


def block_gram(features: Tensor) -> Tensor:
    """(N, N) inner products of standardised features (N, F)."""
    mean, deviation = (part.float() for part in standardisation(features))
    x = (features.float() - mean) / deviation
    return x @ x.T


def one_hot(targets: Tensor, task: str, num_outputs: int) -> Tensor:
    """Targets as columns (N, C): class indicators, labels, or the number itself."""
    if task in ("binary", "multiclass"):
        return torch.nn.functional.one_hot(targets, num_outputs).float()
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
    """Higher is better: accuracy, mean per-label accuracy balanced over 0 and 1, or R^2."""
    if task in ("binary", "multiclass"):
        return float((predictions.argmax(1) == targets).float().mean())
    if task == "multilabel":
        hit = ((predictions > 0.5) == (targets > 0.5)).float()
        positive, negative = targets > 0.5, targets <= 0.5
        return float(0.5 * (hit[positive].mean() + hit[negative].mean()))
    residual = predictions.squeeze(1) - targets
    return float(1.0 - residual.square().mean() / targets.float().var(correction=0).clamp(min=1e-12))


def best_score(gram: Tensor, targets: Tensor, *, task: str, num_outputs: int) -> float:
    """The best leave-one-out score over the strengths."""
    columns = one_hot(targets, task, num_outputs)
    return max(score(p, targets, task) for p in leave_one_out(gram, columns))


class HeldOut:
    """Ridge scores of any combination of reads on a held-out quarter of the rows, each for the price of some Cholesky factors.

    The inner products of rows (N, N) are computed once for each read; those of a combination are their sum.
    """

    def __init__(self, features: Mapping[Read, Tensor], targets: Tensor, *, task: str, num_outputs: int) -> None:
        rows = len(targets)
        self.task, self.targets = task, targets
        self.fitted, self.held = slice(0, rows - rows // 4), slice(rows - rows // 4, rows)
        columns = one_hot(targets, task, num_outputs)[self.fitted]
        self.centre = columns.mean(0)
        self.moments = columns - self.centre
        self.grams = {read: block_gram(values) for read, values in features.items()}

    def best(self, reads: Sequence[Read]) -> float:
        """The best held-out score of a combination over the strengths."""
        gram = self.grams[reads[0]].clone()
        for read in reads[1:]:
            gram += self.grams[read]
        inside, across = gram[self.fitted, self.fitted], gram[self.held, self.fitted]
        scale, scores = float(inside.diagonal().mean()), list[float]()
        for strength in HELD_OUT_STRENGTHS:
            ridge = inside.clone()
            ridge.diagonal().add_(strength * scale)
            predicted = self.centre + across @ torch.cholesky_solve(self.moments, torch.linalg.cholesky(ridge))
            scores.append(score(predicted, self.targets[self.held], self.task))
        return max(scores)
