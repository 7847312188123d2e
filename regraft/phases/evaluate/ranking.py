"""Metrics that depend on the order of scores only, exact for weighted examples: AUROC, average precision, Spearman."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from regraft.phases.evaluate.bootstrap import group_sums

Weighted = Callable[[np.ndarray], np.ndarray]  # weights (N, R) -> (R,)


def auroc_of(scores: np.ndarray, positive: np.ndarray) -> Weighted:
    """Area under the ROC curve of scores (N,) for a boolean (N,): P(positive above negative) + P(tie) / 2.

    The Mann-Whitney form (Hanley and McNeil 1982). Negatives only matter by how many positives they fall below, so they
    are summed into one bucket for each place between the positive scores: two buckets a positive, whatever N is.
    """
    values, place = np.unique(scores[positive], return_inverse=True)
    below = np.searchsorted(values, scores[~positive], side="left")  # number of distinct positive scores under it
    tied = np.searchsorted(values, scores[~positive], side="right") - below
    count = len(values)
    groups = np.empty(
        len(scores), dtype=np.int64
    )  # of all examples, so that no weights are copied: the positives first,
    groups[positive] = place
    groups[~positive] = count + 2 * below + tied  # then even: between two positive scores, odd: equal to one

    def area(weights: np.ndarray) -> np.ndarray:
        sums = group_sums(groups, 3 * count + 1, weights)
        over, under = sums[:count], sums[count:]
        before = np.cumsum(under, axis=0)[0:-1:2]  # negatives strictly below, up to and with the even bucket
        # the running sum up to an even bucket holds the odd ones before it, so nothing strictly below is missed
        wins = (over * (before + under[1::2] / 2)).sum(0)
        pairs = over.sum(0) * under.sum(0)
        return np.divide(wins, pairs, out=np.full(weights.shape[1], np.nan), where=pairs > 0)

    return area


def average_precision_of(scores: np.ndarray, positive: np.ndarray) -> Weighted:
    """Average precision, sum over thresholds of (R_n - R_{n-1}) P_n, without interpolation."""
    values, place = np.unique(-scores, return_inverse=True)  # group 0 holds the highest score

    def precision(weights: np.ndarray) -> np.ndarray:
        hits = group_sums(place[positive], len(values), weights[positive])
        total = np.cumsum(group_sums(place, len(values), weights), axis=0)
        found = np.cumsum(hits, axis=0)
        at_threshold = np.divide(found, total, out=np.zeros_like(found), where=total > 0)
        positives = hits.sum(0)
        area = (hits * at_threshold).sum(0)
        return np.divide(area, positives, out=np.full(weights.shape[1], np.nan), where=positives > 0)

    return precision


def correlation(left: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,) Pearson correlation of left and right, (N,) or (N, R), under weights (N, R); NaN where one is constant."""
    left, right = (side if side.ndim == 2 else side[:, None] for side in (left, right))
    total = weights.sum(0)
    left = left - (left * weights).sum(0) / total
    right = right - (right * weights).sum(0) / total
    spread = np.sqrt((weights * left**2).sum(0) * (weights * right**2).sum(0))
    both = (weights * left * right).sum(0)
    return np.divide(both, spread, out=np.full(weights.shape[1], np.nan), where=spread > 0)


def spearman_of(left: np.ndarray, right: np.ndarray) -> Weighted:
    """Spearman correlation of two (N,): Pearson correlation of the mid-ranks, ranked anew in each resample."""
    groups = [np.unique(side, return_inverse=True) for side in (left, right)]

    def ranks(values: np.ndarray, place: np.ndarray, weights: np.ndarray) -> np.ndarray:
        mass = group_sums(place, len(values), weights)
        return (np.cumsum(mass, axis=0) - mass / 2 + 0.5)[place]

    def rank_correlation(weights: np.ndarray) -> np.ndarray:
        (a, at_a), (b, at_b) = groups
        return correlation(ranks(a, at_a, weights), ranks(b, at_b, weights), weights)

    return rank_correlation
