"""The loss over the steps of a run as a check that training works at all: an alarm where it does not fall."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence

FEWEST = 20  # losses that say something
SURE = 2.0  # standard errors that a fall must be clear of


def flat_loss(events: Iterable[str]) -> list[str]:
    """A sentence for each stage whose training loss did not fall, from the lines of events.jsonl; often none."""
    stages: dict[str, list[float]] = {}
    for line in events:
        record = json.loads(line)
        if "loss" in record and "weight" in record:
            stages.setdefault(str(record["stage"]), []).append(float(record["loss"]))
    return [said for name, losses in stages.items() if (said := _judged(name, losses))]


def _judged(stage: str, losses: Sequence[float]) -> str:
    """The alarm of one stage: the mean of its last fifth is not below that of its first by two standard errors."""
    if len(losses) < FEWEST:
        return ""
    part = len(losses) // 5
    first, last = losses[:part], losses[-part:]
    error = (statistics.variance(first) / part + statistics.variance(last) / part) ** 0.5
    if statistics.fmean(first) - statistics.fmean(last) > SURE * error:
        return ""
    return (
        f"warning: the training loss of stage {stage!r} did not fall: {statistics.fmean(first):.4g} over its first fifth, "
        f"{statistics.fmean(last):.4g} over its last; look at the learning rate (`regraft lr`), at what trains "
        "(`regraft explain`) and at the labels"
    )
