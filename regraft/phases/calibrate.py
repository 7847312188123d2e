"""The phase that makes stated probabilities mean what they say: fits on validation logits, judged on rows not fitted on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from regraft.phases.evaluate.bootstrap import point_values
from regraft.phases.evaluate.classification import brier_values, nll_values
from regraft.phases.evaluate.collect import json_ready
from regraft.phases.evaluate.metrics import usable_rows
from regraft.phases.evaluate.other_tasks import multilabel_brier_values, multilabel_nll_values
from regraft.phases.evaluate.reliability import ece_statistics, reliability_bins, stated_and_observed
from regraft.transforms.temperature import (
    Calibration,
    fit_label_temperatures,
    fit_platt,
    fit_residuals,
    fit_temperature,
)

FOLDS = 5
MOST_CELLS = 50_000_000  # probabilities that are fitted on: all rows where classes are below 1,000, of more a sample
FEWEST = 20  # labelled rows; below that nothing is fitted
Fit = Callable[[np.ndarray, np.ndarray], Calibration]


def calibrate(
    logits: np.ndarray, targets: np.ndarray, *, task: str, seed: int = 0
) -> tuple[Calibration, dict[str, Any]]:
    """The calibration of validation logits, and its section of `metrics.json`.

    Every kind that fits the task is fitted on four fifths of the rows and judged on the fifth left out, five times; the
    one with the least cross-fitted NLL is fitted again on all rows, and nothing is changed where no kind beats the raw
    probabilities. The section holds ECE, NLL, Brier and reliability bins `before` and `after`, the latter cross-fitted.
    Platt scaling moves the decision threshold, so it is only taken where its cross-fitted accuracy is not lower.

    Args:
        logits: (N, C) raw outputs, or (N,) predictions for regression.
        targets: as `Dataset.targets` gives them; rows without one are left out.
        task: binary, multiclass, multilabel or regression.
        seed: of the folds.
    """
    keep = np.flatnonzero(usable_rows(np.asarray(targets), task))
    most = MOST_CELLS // max(1, np.size(logits) // max(1, len(logits)))
    if len(keep) > most:
        keep = np.sort(np.random.default_rng([seed, 1]).permutation(keep)[:most])
    logits, targets = np.asarray(logits[keep], dtype=np.float64), np.asarray(targets)[keep]
    fold = np.random.default_rng(seed).permutation(len(targets)) % FOLDS
    if task == "regression":
        return _residual(logits.reshape(len(logits)), targets, fold)
    if task != "multilabel":
        targets = targets.astype(np.int64)
    raw = Calibration(kind="identity", task=task)
    before = raw.probabilities(logits)
    fits = _fits(task) if len(targets) >= FEWEST else {}
    judged = {name: _cross_fitted(fit, logits, targets, fold) for name, fit in fits.items()}
    losses = {"identity": _quality(before, targets, task)["nll"]} if len(targets) else {}
    losses |= {name: _quality(each, targets, task)["nll"] for name, each in judged.items()}
    accuracy = (before.argmax(1) == targets).mean() if task == "binary" and len(targets) else 0.0
    refused = [n for n in judged if n == "platt" and (judged[n].argmax(1) == targets).mean() < accuracy]
    winner = min((name for name in losses if name not in refused), key=losses.__getitem__, default="identity")
    chosen = raw if winner == "identity" else fits[winner](logits, targets)
    after = judged.get(winner, before)
    section = {
        **chosen.to_json(),
        "rows": len(targets),
        "folds": FOLDS if fits else 0,
        "cross_fitted_nll": losses,
        "before": _quality(before, targets, task),
        "after": _quality(after, targets, task),
        "reliability": {
            "split": "valid",
            "before": reliability_bins(before, targets, task=task),
            "after": reliability_bins(after, targets, task=task),
        },
    }
    return chosen, json_ready(section | {"sentences": _sentences(chosen, section, refused)})


def _fits(task: str) -> dict[str, Fit]:
    """The kinds that fit a task, simplest first, each as a function of logits and targets."""

    def temperature(logits: np.ndarray, targets: np.ndarray) -> Calibration:
        return Calibration(kind="temperature", task=task, parameters={"temperature": fit_temperature(logits, targets)})

    def platt(logits: np.ndarray, targets: np.ndarray) -> Calibration:
        a, b = fit_platt(logits[:, 1] - logits[:, 0], targets)
        return Calibration(kind="platt", task=task, parameters={"a": a, "b": b})

    def label_temperature(logits: np.ndarray, targets: np.ndarray) -> Calibration:
        found = fit_label_temperatures(logits, targets).tolist()
        return Calibration(kind="label_temperature", task=task, parameters={"temperatures": found})

    if task == "multilabel":
        return {"label_temperature": label_temperature}
    return {"temperature": temperature, "platt": platt} if task == "binary" else {"temperature": temperature}


def _cross_fitted(fit: Fit, logits: np.ndarray, targets: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """(N, C) probabilities of each row from the calibration that was fitted without its fold."""
    out = np.empty(logits.shape)
    for k in range(FOLDS):
        held = fold == k
        out[held] = fit(logits[~held], targets[~held]).probabilities(logits[held])
    return out


def _quality(scores: np.ndarray, targets: np.ndarray, task: str) -> dict[str, float]:
    """`{ece, ece_adaptive, nll, brier}` of probabilities; empty without rows."""
    if not len(targets):
        return {}
    nll, brier = (
        (multilabel_nll_values, multilabel_brier_values) if task == "multilabel" else (nll_values, brier_values)
    )
    found = point_values([ece_statistics(*stated_and_observed(scores, targets, task), len(targets))], len(targets))
    return found | {"nll": float(nll(scores, targets).mean()), "brier": float(brier(scores, targets).mean())}


def _residual(predictions: np.ndarray, targets: np.ndarray, fold: np.ndarray) -> tuple[Calibration, dict[str, Any]]:
    """Residual widths of a regression, and the share of held-out rows that they cover."""
    if not len(targets):
        raw = Calibration(kind="identity", task="regression")
        return raw, raw.to_json() | {
            "rows": 0,
            "sentences": ["No validation row has a target, so no interval was fitted."],
        }
    chosen = Calibration(kind="residual", task="regression", parameters=fit_residuals(predictions, targets))
    covered = np.zeros(len(targets), dtype=bool)
    for k in range(FOLDS):
        held = fold == k
        if held.any() and not held.all():
            width = fit_residuals(predictions[~held], targets[~held])["half_width"]
            covered[held] = np.abs(predictions[held] - targets[held]) <= width
    wanted, width = chosen.parameters["coverage"], chosen.parameters["half_width"]
    held = f"{100 * covered.mean():.1f} % of validation rows left out of the fit ({100 * wanted:.0f} % wanted)"
    sentence = f"Predictions are stated with ± {width:.4g}, which held {held}."
    section = {**chosen.to_json(), "rows": len(targets), "folds": FOLDS, "cross_fitted_coverage": covered.mean()}
    return chosen, json_ready(section | {"sentences": [sentence]})


def _sentences(chosen: Calibration, section: dict[str, Any], refused: list[str]) -> list[str]:
    """What was done and what it changed, in words."""
    rows, losses = section["rows"], section["cross_fitted_nll"]
    if not section["folds"]:
        return [
            f"Probabilities are left as they are: {rows} labelled validation rows are too few to fit on (at least {FEWEST})."
        ]
    before, after = section["before"], section["after"]
    if chosen.kind == "identity":
        best = min(value for name, value in losses.items() if name != "identity")
        raw = losses["identity"]
        out = [f"Probabilities are left as they are: the best fit has a cross-fitted NLL of {best:.4f}, raw {raw:.4f}."]
    else:
        name = {
            "temperature": "Temperature {temperature:.3f}",
            "platt": "Platt scaling (a {a:.3f}, b {b:.3f})",
            "label_temperature": "One temperature for each label",
        }[chosen.kind].format_map(chosen.parameters)
        out = [
            f"{name}, fitted on {rows:,} validation rows: ECE {before['ece']:.4f} to "
            f"{after['ece']:.4f}, NLL {before['nll']:.4f} to {after['nll']:.4f}, both on rows left out of the fit."
        ]
    if chosen.kind == "temperature":
        out.append("A temperature changes no prediction, only how sure it is stated to be.")
    if chosen.kind == "platt":
        out.append("Platt scaling can move the decision threshold; accuracy on held-out validation rows is not lower.")
    if refused:
        out.append("Platt scaling was refused because it lowers accuracy on held-out validation rows.")
    return out
