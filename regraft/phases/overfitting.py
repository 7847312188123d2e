"""An alarm for overfitting: from some step on the training loss goes on falling while the validation loss rises."""

from __future__ import annotations

import json
from collections.abc import Iterable
from statistics import fmean
from typing import Any

APART = 0.1  # share by which both losses have moved, in opposite directions


def overfitting(events: Iterable[str], candidate: str | None = None) -> list[str]:
    """A sentence for each stage that began to overfit, from the lines of events.jsonl; `candidate` names one of a race."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for line in events:
        record = json.loads(line)
        if "stage" in record and (candidate is None or record.get("candidate") == candidate):
            stages.setdefault(record["stage"], []).append(record)
    return [said for stage, records in stages.items() for said in _alarm(stage, gap(records))]


def gap(records: Iterable[dict[str, Any]]) -> list[tuple[int, float, float]]:
    """(step, mean training loss since the validation before, validation loss) at each validation of a stage."""
    points: list[tuple[int, float, float]] = []
    losses: list[float] = []
    for record in records:
        if "loss" in record:
            losses.append(float(record["loss"]))
        elif "valid/loss" in record and losses:
            points.append((int(record["step"]), fmean(losses), float(record["valid/loss"])))
            losses = []
    return points


def _alarm(stage: str, points: list[tuple[int, float, float]]) -> list[str]:
    if len(points) < 2:
        return []
    best = min(points, key=lambda point: point[2])
    last = points[-1]
    fell, rose = best[1] - last[1], last[2] - best[2]
    if fell <= APART * abs(best[1]) or rose <= APART * abs(best[2]):
        return []
    return [
        f"stage {stage!r} overfits: from step {best[0]:,} on the training loss fell from {best[1]:.3f} to {last[1]:.3f} while "
        f"the validation loss rose from {best[2]:.3f} to {last[2]:.3f}; stop earlier (`validate: {{patience: 3}}`), train fewer "
        "weights, or regularise (docs/overfitting.md)"
    ]
