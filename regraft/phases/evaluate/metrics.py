"""All metrics of a task with bootstrap intervals: `evaluate`, and `paired_bootstrap` for two models on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from regraft.errors import ConfigError, suggest
from regraft.phases.evaluate.bootstrap import (
    Statistics,
    mean_of,
    point_values,
    resample_weights,
    resamples_for,
    with_intervals,
)
from regraft.phases.evaluate.classification import auroc_statistics, brier_values, count_statistics, nll_values
from regraft.phases.evaluate.other_tasks import (
    multilabel_brier_values,
    multilabel_nll_values,
    multilabel_statistics,
    regression_statistics,
)
from regraft.phases.evaluate.ranking import average_precision_of
from regraft.phases.evaluate.reliability import ece_statistics, stated_and_observed

PRIMARY = {"binary": "accuracy", "multiclass": "accuracy", "multilabel": "micro_f1", "regression": "r2"}
MOST_RANKED = 1000  # classes; of more, the areas of each against the rest are left out
LOWER_IS_BETTER = frozenset(
    {"bits_per_token", "perplexity", "ece", "ece_adaptive", "nll", "brier", "hamming_loss", "mse", "rmse", "mae"}
)


def usable_rows(targets: np.ndarray, task: str) -> np.ndarray:
    """(N,) bool: the rows whose target is there. Missing is -1 for a class, NaN for a number or any label of a row."""
    if task == "regression":
        return np.asarray(np.isfinite(targets).reshape(len(targets), -1).all(1))
    if task == "multilabel":
        return np.all(np.isfinite(targets) & (targets >= 0), axis=1)
    return targets >= 0


def checked(
    scores: np.ndarray, targets: np.ndarray, *, task: str, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Scores as float64 and targets, shapes checked: `(N,)` or `(N, T)` for regression, else `(N, C)` for C classes."""
    if task not in PRIMARY:
        raise ConfigError(
            f"task: must be binary, multiclass, multilabel or regression, got {task!r}{suggest(task, PRIMARY)}"
        )
    scores, targets = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    if task == "regression" and targets.ndim == 1 and scores.ndim == 2 and scores.shape[1] == 1:
        scores = scores[:, 0]
    wanted = targets.shape if task == "regression" else (len(targets), len(classes))
    if scores.shape != wanted:
        raise ConfigError(
            f"scores: must have shape {wanted} for {task} targets of {len(targets)} rows, got {scores.shape}"
        )
    return scores, targets


def evaluate(
    scores: np.ndarray,
    targets: np.ndarray,
    *,
    task: str,
    classes: Sequence[str] = (),
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, dict[str, Any]]:
    """`{metric: {"value", "low", "high"}}` with bootstrap percentile 95 % intervals.

    Args:
        scores: probabilities (N, C) for classes, independent ones for multi-label; predictions (N,) for regression, or
            (N, T) of several targets, whose metrics are means over the targets.
        targets: class ids (N,), 0/1 (N, C) or numbers (N,) or (N, T). Rows with a target of -1 or NaN are left out and counted.
        task: binary, multiclass, multilabel or regression.
        classes: the names, in the order of the columns.
        seed: of the resamples.
        resamples: how many; fewer are drawn for more than 40,000 rows.

    Returns:
        The metrics, then `n`, `excluded` and `resamples`, which are counts. A metric that is not defined for these targets
        has the value None and a `reason`.
    """
    scores, targets = checked(scores, targets, task=task, classes=classes)
    keep = usable_rows(targets, task)
    if not keep.all():
        scores, targets = scores[keep], targets[keep]
    rows = len(targets)
    out: dict[str, dict[str, Any]] = {}
    if rows:
        statistics, skipped = statistics_for(scores, targets, task=task, classes=classes)
        measured = with_intervals(statistics, rows, seed=seed, resamples=resamples)
        out = {name: _undefined(name) if np.isnan(each["value"]) else each for name, each in measured.items()} | skipped
    counts = {"n": rows, "excluded": int((~keep).sum()), "resamples": resamples_for(rows, resamples) if rows else 0}
    return out | {name: {"value": count, "low": count, "high": count} for name, count in counts.items()}


def statistics_for(
    scores: np.ndarray, targets: np.ndarray, *, task: str, classes: Sequence[str]
) -> tuple[list[Statistics], dict[str, dict[str, Any]]]:
    """The metrics of a task as functions of weights, and those that these targets do not define, with the reason."""
    if task == "regression":
        return [regression_statistics(scores, targets)], {}
    calibration = ece_statistics(*stated_and_observed(scores, targets, task), len(targets))
    if task == "multilabel":
        losses = (
            mean_of("nll", multilabel_nll_values(scores, targets)),
            mean_of("brier", multilabel_brier_values(scores, targets)),
        )
        return [multilabel_statistics(scores, targets), *losses, calibration], {}
    targets = targets.astype(np.int64)
    skipped = {}
    found = [count_statistics(scores.argmax(1), targets, len(classes))]
    found += [mean_of("nll", nll_values(scores, targets)), mean_of("brier", brier_values(scores, targets)), calibration]
    absent = [
        name for name, count in zip(classes, np.bincount(targets, minlength=len(classes)), strict=True) if not count
    ]
    ranked = ["auroc", "average_precision"] if len(classes) == 2 else ["auroc"]
    if absent or len(classes) > MOST_RANKED:
        reason = _why_unranked(absent, len(classes))
        skipped = {name: {"value": None, "low": None, "high": None, "reason": reason} for name in ranked}
    else:
        found.append(auroc_statistics(scores, targets))
        if len(classes) == 2:
            precision = average_precision_of(scores[:, 1], targets == 1)
            found.append(lambda weights: {"average_precision": precision(weights)})
    return found, skipped


def _why_unranked(absent: list[str], classes: int) -> str:
    if not absent:
        return f"with {classes:,} classes, more than {MOST_RANKED:,}, each against the rest says little and takes long"
    return f"class {absent[0]!r} has no rows here" + (f", nor have {len(absent) - 1} others" if absent[1:] else "")


def _undefined(name: str) -> dict[str, Any]:
    """The entry of a metric that is 0 / 0 on these rows."""
    return {
        "value": None,
        "low": None,
        "high": None,
        "reason": f"{name} is not defined: the targets or predictions are constant",
    }


def paired_bootstrap(
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    targets: np.ndarray,
    *,
    task: str = "multiclass",
    classes: Sequence[str] = (),
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """`{"metric", "difference", "low", "high"}`: the task's primary metric of a minus that of b, on the same resamples.

    Both models see the same rows in every resample, so what is hard for both cancels and the interval is narrower than
    that of two separate ones. The metric is accuracy, micro F1 for multi-label, R2 for regression.
    """
    if not classes and task != "regression":
        classes = tuple(str(i) for i in range(np.asarray(scores_a).shape[1]))
    keep = usable_rows(np.asarray(targets), task)
    metric, pair = PRIMARY[task], []
    kept = slice(None) if keep.all() else keep
    for scores in (scores_a, scores_b):
        values, labels = checked(scores, targets, task=task, classes=classes)
        pair.append(_primary(values[kept], labels[kept], task))
    rows = int(keep.sum())
    if not rows:
        return {"metric": metric, "difference": None, "low": None, "high": None}
    value = point_values([pair[0]], rows)[metric] - point_values([pair[1]], rows)[metric]
    drawn = [
        pair[0](w)[metric] - pair[1](w)[metric] for w in resample_weights(rows, resamples_for(rows, resamples), seed)
    ]
    low, high = np.nanquantile(np.concatenate(drawn), [0.025, 0.975])
    return {"metric": metric, "difference": float(value), "low": float(low), "high": float(high)}


def _primary(scores: np.ndarray, targets: np.ndarray, task: str) -> Statistics:
    """The statistics that hold the primary metric of a task, without the expensive ones."""
    if task == "regression":
        return regression_statistics(scores, targets)
    if task == "multilabel":
        return multilabel_statistics(scores, targets)
    return mean_of("accuracy", scores.argmax(1) == targets)
