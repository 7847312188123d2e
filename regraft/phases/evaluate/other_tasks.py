"""Metrics of multi-label probabilities and of regression, as functions of example weights (N, R)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from regraft.phases.evaluate.bootstrap import Statistics
from regraft.phases.evaluate.classification import EPSILON, divide
from regraft.phases.evaluate.ranking import correlation, spearman_of


def multilabel_nll_values(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(N,) binary cross-entropy in nats, mean over the labels, with probabilities cut off at 2.2e-16."""
    right = np.where(targets > 0.5, scores, 1 - scores)
    return -np.log(np.clip(right, EPSILON, 1.0)).mean(1)


def multilabel_brier_values(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(N,) squared error of the probabilities, mean over the labels."""
    return ((scores - targets) ** 2).mean(1)


def multilabel_statistics(scores: np.ndarray, targets: np.ndarray) -> Statistics:
    """Micro and macro F1, subset accuracy and Hamming loss of the labels whose probability is at least one half."""
    called, label = scores >= 0.5, targets > 0.5
    right = (called & label).astype(np.float64)
    both = called.astype(np.float64) + label
    exact = (called == label).all(1).astype(np.float64)
    wrong = (called != label).mean(1)

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        hits, sizes, total = right.T @ weights, both.T @ weights, weights.sum(0)
        return {
            "micro_f1": divide(2 * hits.sum(0), sizes.sum(0)),
            "macro_f1": divide(2 * hits, sizes).mean(0),
            "subset_accuracy": exact @ weights / total,
            "hamming_loss": wrong @ weights / total,
        }

    return statistics


def regression_statistics(predictions: np.ndarray, targets: np.ndarray) -> Statistics:
    """MSE, RMSE, MAE, R2 (against the mean of each resample), Pearson and Spearman correlation.

    Of several targets (N, T) each is the mean over the targets.
    """
    if targets.ndim == 2:
        columns = [regression_statistics(predictions[:, t], targets[:, t]) for t in range(targets.shape[1])]
        return lambda weights: _means([one(weights) for one in columns])
    predictions, targets = predictions.astype(np.float64), targets.astype(np.float64)
    squared, absolute = (predictions - targets) ** 2, np.abs(predictions - targets)
    centred = targets - targets.mean()  # a shift leaves the variance alone and saves its digits
    rank_correlation = spearman_of(predictions, targets)

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        total = weights.sum(0)
        mse = squared @ weights / total
        variance = centred**2 @ weights / total - (centred @ weights / total) ** 2
        unexplained = np.divide(mse, variance, out=np.full(len(mse), np.nan), where=variance > 0)
        return {
            "mse": mse,
            "rmse": np.sqrt(mse),
            "mae": absolute @ weights / total,
            "r2": 1 - unexplained,
            "pearson": correlation(predictions, targets, weights),
            "spearman": rank_correlation(weights),
        }

    return statistics


def _means(found: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.mean([one[name] for one in found], axis=0) for name in found[0]}
