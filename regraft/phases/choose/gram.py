"""Comparing feature sets without fitting a head for each: ridge scores from inner products that are computed once.

One depth alone is judged by exact leave-one-out predictions, combinations of depths on a held-out quarter of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from regraft.models.heads import standardisation

STRENGTHS = tuple(10.0**k for k in (-3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 2))  # times the mean of the diagonal
HELD_OUT_STRENGTHS = (0.003, 0.03, 0.3, 3.0)
MOST_FEATURES = 6000  # of all reads together, for products of features
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

    All reads together have one matrix of inner products of features (F, F); a combination is a part of it. With fewer rows
    than features the products of rows (N, N) are kept instead, and a combination is a sum of them.
    """

    def __init__(self, features: Mapping[Read, Tensor], targets: Tensor, *, task: str, num_outputs: int) -> None:
        self.task, self.targets = task, targets
        rows = len(targets)
        self.fitted, self.held = slice(0, rows - rows // 4), slice(rows - rows // 4, rows)
        self.columns = one_hot(targets, task, num_outputs)
        self.centre = self.columns[self.fitted].mean(0)
        self.widths = {read: values.shape[1] for read, values in features.items()}
        self.by_features = sum(self.widths.values()) <= min(MOST_FEATURES, rows)
        scaled = {read: _standard(values, self.fitted) for read, values in features.items()}
        if self.by_features:
            x = torch.cat(list(scaled.values()), dim=1)
            ends = torch.tensor(list(self.widths.values())).cumsum(0).tolist()
            self.places = {
                read: range(end - self.widths[read], end) for read, end in zip(self.widths, ends, strict=True)
            }
            fit = x[self.fitted]
            self.products, self.moments, self.rest = (
                fit.T @ fit,
                fit.T @ (self.columns[self.fitted] - self.centre),
                x[self.held],
            )
        else:
            self.grams = {read: values @ values.T for read, values in scaled.items()}

    def best(self, reads: Sequence[Read]) -> float:
        """The best held-out score of a combination over the strengths."""
        predictions = self._by_features(reads) if self.by_features else self._by_rows(reads)
        held = self.targets[self.held]
        return max(score(self.centre + p, held, self.task) for p in predictions)

    def _by_features(self, reads: Sequence[Read]) -> Iterator[Tensor]:
        index = torch.cat([torch.arange(self.places[read].start, self.places[read].stop) for read in reads])
        products, moments, rest = self.products[index][:, index], self.moments[index], self.rest[:, index]
        for ridge in _ridges(products):
            yield rest @ torch.cholesky_solve(moments, torch.linalg.cholesky(ridge))

    def _by_rows(self, reads: Sequence[Read]) -> Iterator[Tensor]:
        gram = torch.stack([self.grams[read] for read in reads]).sum(0)
        moments = self.columns[self.fitted] - self.centre
        for ridge in _ridges(gram[self.fitted, self.fitted]):
            yield gram[self.held, self.fitted] @ torch.cholesky_solve(moments, torch.linalg.cholesky(ridge))


def _ridges(products: Tensor) -> Iterator[Tensor]:
    """The matrix with each strength on its diagonal."""
    scale = float(products.diagonal().mean())
    for strength in HELD_OUT_STRENGTHS:
        ridge = products.clone()
        ridge.diagonal().add_(strength * scale)
        yield ridge


def _standard(values: Tensor, fitted: slice) -> Tensor:
    mean, deviation = (part.float() for part in standardisation(values[fitted]))
    return (values.float() - mean) / deviation
