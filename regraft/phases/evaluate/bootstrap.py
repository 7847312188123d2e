"""Bootstrap percentile intervals for any metric that is a function of example weights.

A resample is a column of counts, how often each example was drawn, so a metric is written once, for weights (N, R): a
column of ones gives its value and the other columns its resamples. Nothing is ever gathered or sorted again per resample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

# weights (N, R) -> metric name -> (R,) values
Statistics = Callable[[np.ndarray], Mapping[str, np.ndarray]]

CHUNK = 2**20  # weights held at a time: 8 MiB, which stays in the cache of a laptop
DRAWS = 4 * 10**7  # at most this many examples are drawn in all: a few seconds
FEWEST = 200  # resamples, however many rows there are
# a mean of absolute gaps grows with the noise that a resample adds, so its resamples lie above the value by that much
BIASED = frozenset({"ece", "ece_adaptive"})


def resamples_for(rows: int, wanted: int = 1000) -> int:
    """Number of resamples: `wanted`, or fewer for more than 40,000 rows, where intervals are narrow anyway."""
    return min(wanted, max(FEWEST, DRAWS // max(rows, 1)))


def resample_weights(rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Counts (N, R_i) of draws with replacement, float64, in chunks; the columns of one chunk each sum to N."""
    rng = np.random.default_rng(seed)
    width = max(1, min(resamples, CHUNK // max(rows, 1)))
    for start in range(0, resamples, width):
        columns = min(width, resamples - start)
        drawn = rng.integers(0, rows, size=(columns, rows))
        drawn *= columns
        drawn += np.arange(columns)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * columns).reshape(rows, columns).astype(np.float64)


def group_sums(groups: np.ndarray, count: int, weights: np.ndarray) -> np.ndarray:
    """(count, R) sums of the weights (N, R) over the rows of each group; `groups` is (N,) with values below `count`."""
    from scipy import sparse

    rows = len(groups)
    # one entry a column, so scipy adds whole rows of the weights: no indices are built and nothing is copied
    shape = (count, rows)
    matrix = sparse.csc_matrix((np.ones(rows), groups.astype(np.int32), np.arange(rows + 1, dtype=np.int32)), shape)
    return matrix @ weights


def mean_of(name: str, values: np.ndarray) -> Statistics:
    """The mean of per-example values (N,) as a metric called `name`."""
    values = np.asarray(values, dtype=np.float64)
    return lambda weights: {name: values @ weights / weights.sum(0)}


def point_values(statistics: Sequence[Statistics], rows: int) -> dict[str, float]:
    """Every metric on the examples as they are: weights of one."""
    ones = np.ones((rows, 1))
    return {name: float(value[0]) for each in statistics for name, value in each(ones).items()}


def with_intervals(
    statistics: Sequence[Statistics], rows: int, *, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> dict[str, dict[str, Any]]:
    """`{metric: {"value", "low", "high"}}` with percentile intervals (Efron 1979); NaN where a metric is undefined.

    Calibration errors are moved down by the bias that the resamples show, mean minus value, and not below zero.
    """
    values = point_values(statistics, rows)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in values}
    for weights in resample_weights(rows, resamples_for(rows, resamples), seed):
        for each in statistics:
            for name, column in each(weights).items():
                drawn[name].append(column)
    tail = (1 - level) / 2
    return {
        name: _interval(values[name], np.concatenate(parts), tail, biased=name in BIASED)
        for name, parts in drawn.items()
    }


def _interval(value: float, drawn: np.ndarray, tail: float, *, biased: bool) -> dict[str, Any]:
    """Value with the percentiles of the defined resamples; resamples in which the metric is undefined are left out."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return {"value": value, "low": float("nan"), "high": float("nan")}
    if biased:
        drawn = np.maximum(drawn - (drawn.mean() - value), 0.0)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return {"value": value, "low": float(low), "high": float(high)}
