"""Metrics of class probabilities (N, C) against class ids (N,), as functions of example weights (N, R)."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.phases.evaluate.bootstrap import Statistics, group_sums
from regraft.phases.evaluate.ranking import auroc_of

# the probability below which a logarithm is cut off, as in sklearn.metrics.log_loss for float64
EPSILON = float(np.finfo(np.float64).eps)


def divide(above: np.ndarray, below: np.ndarray, *, empty: float = 0.0) -> np.ndarray:
    """Above / below, and `empty` where below is zero."""
    above, below = np.broadcast_arrays(np.asarray(above, float), np.asarray(below, float))
    return np.divide(above, below, out=np.full(below.shape, empty), where=below != 0)


def confusion_matrix(predicted: np.ndarray, targets: np.ndarray, num_classes: int) -> np.ndarray:
    """(C, C) int64 counts: row = the label, column = what was predicted."""
    flat = np.bincount(targets * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def count_statistics(predicted: np.ndarray, targets: np.ndarray, num_classes: int) -> Statistics:
    """Accuracy, balanced accuracy and macro precision, recall and F1.

    Macro means go over the classes that occur as a label or as a prediction, an undefined ratio is 0, and balanced
    accuracy goes over the classes that occur as a label: the conventions of scikit-learn.
    """
    hit = predicted == targets

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        support = group_sums(targets, num_classes, weights)
        called = group_sums(predicted, num_classes, weights)
        right = group_sums(targets[hit], num_classes, weights[hit])
        seen = (support + called) > 0
        classes = seen.sum(0)
        recall = divide(right, support)
        return {
            "accuracy": right.sum(0) / weights.sum(0),
            "balanced_accuracy": recall.sum(0) / (support > 0).sum(0),
            "macro_precision": divide(right, called).sum(0) / classes,
            "macro_recall": recall.sum(0) / classes,
            "macro_f1": divide(2 * right, support + called).sum(0) / classes,
        }

    return statistics


def per_class(predicted: np.ndarray, targets: np.ndarray, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """One `{class, precision, recall, f1, support, predicted}` for each class, in the order of the class ids."""
    counts = confusion_matrix(predicted, targets, len(classes))
    right, support, called = np.diag(counts), counts.sum(1), counts.sum(0)
    columns = divide(right, called), divide(right, support), divide(2 * right, support + called)
    return [
        {
            "class": name,
            "precision": float(columns[0][i]),
            "recall": float(columns[1][i]),
            "f1": float(columns[2][i]),
            "support": int(support[i]),
            "predicted": int(called[i]),
        }
        for i, name in enumerate(classes)
    ]


def nll_values(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(N,) -log p(label) in nats, with p cut off at 2.2e-16."""
    return -np.log(np.clip(scores[np.arange(len(targets)), targets], EPSILON, 1.0))


def brier_values(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(N,) squared distance of the probabilities to the label (Brier 1950).

    Summed over the classes; for two classes only the second one counts, as is usual, which is half the sum.
    """
    if scores.shape[1] == 2:
        return (scores[:, 1] - targets) ** 2
    right = scores[np.arange(len(targets)), targets]
    return (scores**2).sum(1) - right**2 + (1 - right) ** 2


def auroc_statistics(scores: np.ndarray, targets: np.ndarray) -> Statistics:
    """`auroc`: of the second class for two classes, else the mean of one class against the rest over the classes.

    A resample without positives of a class leaves that class out of its mean.
    """
    binary = scores.shape[1] == 2
    ids = [1] if binary else range(scores.shape[1])
    areas = [auroc_of(scores[:, c], targets == c) for c in ids]

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        total, defined = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
        for area in areas:
            value = area(weights)
            known = np.isfinite(value)
            total += np.where(known, value, 0.0)
            defined += known
        return {"auroc": divide(total, defined, empty=np.nan)}

    return statistics
