"""How far stated probabilities are from observed frequencies: reliability bins and expected calibration error."""

from __future__ import annotations

from typing import Any

import numpy as np

from regraft.phases.evaluate.bootstrap import Statistics

BINS = 15


def stated_and_observed(scores: np.ndarray, targets: np.ndarray, task: str) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities that are judged, and whether what they promised happened: (M,) float64 and (M,) float64 of 0 and 1.

    Classes: the top probability of each row and whether that class is the label (Guo et al. 2017), M = N.
    Multi-label: every probability of every label and whether the label is set, row by row, M = N C.
    """
    if task == "multilabel":
        return scores.astype(np.float64).ravel(), targets.astype(np.float64).ravel()
    top = scores.argmax(1)
    return scores[np.arange(len(scores)), top].astype(np.float64), (top == targets).astype(np.float64)


def equal_width(stated: np.ndarray, bins: int = BINS) -> np.ndarray:
    """(M,) bin of each probability among `bins` intervals ((b - 1) / B, b / B]; zero falls into the first."""
    return np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), stated, side="left") - 1, 0, bins - 1)


def equal_mass(stated: np.ndarray, bins: int = BINS) -> np.ndarray:
    """(M,) bin of each probability among `bins` bins of equally many examples, filled in ascending order."""
    out = np.empty(len(stated), dtype=np.int64)
    out[np.argsort(stated, kind="stable")] = np.arange(len(stated)) * bins // max(len(stated), 1)
    return out


def ece_statistics(stated: np.ndarray, observed: np.ndarray, rows: int) -> Statistics:
    """`ece` and `ece_adaptive`: sum over bins of |share of hits - mean probability| weighted by the bin's share.

    Guo et al. 2017 (arXiv:1706.04599), eq. 3, with 15 equal-width bins; `ece_adaptive` has 15 bins of equal mass, whose
    limits are those of the full sample in every resample. `rows` is N: multi-label has several probabilities a row.
    """
    from scipy import sparse

    width = len(stated) // max(rows, 1)
    row = np.arange(len(stated)) // max(width, 1)
    gaps = {
        name: sparse.csc_matrix((observed - stated, (place, row)), shape=(BINS, rows))
        for name, place in (("ece", equal_width(stated)), ("ece_adaptive", equal_mass(stated)))
    }

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        total = width * weights.sum(0)
        return {name: np.abs(gap @ weights).sum(0) / total for name, gap in gaps.items()}

    return statistics


def reliability_bins(scores: np.ndarray, targets: np.ndarray, *, task: str, bins: int = BINS) -> list[dict[str, Any]]:
    """`{low, high, count, confidence, accuracy}` for each equal-width bin; both means are None in an empty bin.

    `scores` are probabilities (N, C); rows whose target is missing must be gone. Regression has no bins: an empty list.
    """
    if task == "regression" or len(scores) == 0:
        return []
    stated, observed = stated_and_observed(scores, targets, task)
    place = equal_width(stated, bins)
    count = np.bincount(place, minlength=bins)
    confidence, hits = (np.bincount(place, weights=values, minlength=bins) for values in (stated, observed))
    edges = np.linspace(0, 1, bins + 1)
    return [
        {
            "low": float(edges[b]),
            "high": float(edges[b + 1]),
            "count": int(count[b]),
            "confidence": float(confidence[b] / count[b]) if count[b] else None,
            "accuracy": float(hits[b] / count[b]) if count[b] else None,
        }
        for b in range(bins)
    ]
