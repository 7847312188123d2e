"""The examples behind the numbers: which classes are taken for each other, and which rows the model gets most wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from regraft.phases.evaluate.classification import nll_values
from regraft.phases.evaluate.metrics import usable_rows
from regraft.phases.evaluate.other_tasks import multilabel_nll_values


def confused_pairs(confusion: np.ndarray, classes: Sequence[str], top: int = 10) -> list[dict[str, Any]]:
    """`{label, predicted, count, share}` of the most frequent confusions; share is of the rows with that label."""
    confusion = np.asarray(confusion)
    wrong = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-wrong, axis=None, kind="stable")[:top]
    support = confusion.sum(1)
    pairs = [(int(place // len(classes)), int(place % len(classes))) for place in order]
    return [
        {
            "label": classes[i],
            "predicted": classes[j],
            "count": int(wrong[i, j]),
            "share": float(wrong[i, j] / support[i]),
        }
        for i, j in pairs
        if wrong[i, j]
    ]


def most_confused_classes(confusion: np.ndarray, top: int = 20) -> list[int]:
    """Ids of at most `top` classes: those of the most frequent confusions, partners side by side.

    Taking pairs rather than single classes keeps the errors inside the part of the matrix that is shown.
    """
    confusion = np.asarray(confusion)
    size = len(confusion)
    wrong = confusion - np.diag(np.diag(confusion))
    chosen: dict[int, None] = {}
    for place in np.argsort(-wrong, axis=None, kind="stable"):
        pair = {int(place // size): None, int(place % size): None}
        if not wrong.flat[place] or len(chosen) >= top:
            break
        if len(chosen | pair) <= top:
            chosen |= pair
    return list(chosen)


def example_losses(scores: np.ndarray, targets: np.ndarray, task: str) -> np.ndarray:
    """(N,) loss of each row: -log p(label) in nats, its mean over labels for multi-label, |error| for regression.

    Of several targets it is the mean over them.
    """
    if task == "regression":
        return np.abs(scores - targets).reshape(len(targets), -1).mean(1)
    if task == "multilabel":
        return multilabel_nll_values(scores, targets)
    return nll_values(scores, targets.astype(np.int64))


def hard_examples(
    scores: np.ndarray,
    targets: np.ndarray,
    rows: np.ndarray,
    top: int = 20,
    *,
    task: str = "multiclass",
    classes: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """`{row, loss, label, predicted, probability}` of the rows with the highest loss, worst first.

    `rows` (N,) are the numbers by which the user knows the rows. `probability` is that of the prediction, None for
    regression. Label and prediction are class names where `classes` are given, lists of them for multi-label.
    """
    scores, targets = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    keep = usable_rows(targets, task)
    scores, targets, rows = scores[keep], targets[keep], np.asarray(rows)[keep]
    losses = example_losses(scores, targets, task)
    worst = np.argsort(-losses, kind="stable")[:top]
    return [
        {"row": row, "loss": float(losses[i])} | _described(scores[i], targets[i], task, classes)
        for i, row in zip(worst, rows[worst].tolist(), strict=True)
    ]


def _described(score: np.ndarray, target: np.ndarray, task: str, classes: Sequence[str]) -> dict[str, Any]:
    """Label, prediction and the probability of the prediction, for one row."""
    if task == "regression":
        label, predicted = (
            value.tolist() if value.ndim else float(value) for value in (np.asarray(target), np.asarray(score))
        )
        return {"label": label, "predicted": predicted, "probability": None}
    names = list(classes or range(len(score)))
    if task == "multilabel":
        chosen = score >= 0.5
        stated = np.where(chosen, score, 1 - score).min()
        label, predicted = ([names[int(i)] for i in np.flatnonzero(which)] for which in (target > 0.5, chosen))
        return {"label": label, "predicted": predicted, "probability": float(stated)}
    top = int(score.argmax())
    return {"label": names[int(target)], "predicted": names[top], "probability": float(score[top])}
