"""What is handed to workers and what comes back: a leg of a trial, and its outcome. Both are plain values in the journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

COMPLETE, FAIL, RETRY = "COMPLETE", "FAIL", "RETRY"


@dataclass(frozen=True, kw_only=True)
class Leg:
    """One piece of a trial: trained up to a share of all there is, from where an earlier leg ended."""

    number: int  # in the order they were asked for
    trial: int
    level: int  # index of the share among those of the method
    share: float  # of the steps or the rows, in (0, 1]
    drawn: Mapping[str, Any]  # the point of the space
    after: int | None = None  # the leg whose end it goes on from; one of another trial where that was copied
    source: int | None = None  # the trial of that leg
    bracket: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values, read by `Leg(**values)`."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a leg ended."""

    leg: int
    state: str  # COMPLETE or FAIL
    score: float | None = None  # of the validation rows, higher is better
    loss: float | None = None
    steps: int = 0  # made in this leg
    reached: int = 0  # steps since the trial began
    finished: bool = False  # is there nothing more to train?
    epochs: float = 0.0  # passes over all training rows that these were
    seconds: float = 0.0
    attempts: int = 1
    reason: str = ""  # why it failed
    model: Mapping[str, Any] = field(default_factory=dict)  # parameters, trained, bytes, latency_ms

    def to_json(self) -> dict[str, Any]:
        """Plain values, read by `Outcome(**values)`."""
        return asdict(self)

    def worth(self, metric: str) -> float | None:
        """What a method maximises; None of a leg that failed."""
        if self.state != COMPLETE:
            return None
        return self.score if metric == "score" else None if self.loss is None else -self.loss
