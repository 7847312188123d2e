"""What a schedule offers that acts on validation results: it is told of them, and what it has seen survives a resume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from regraft.core.protocols import State


@runtime_checkable
class Remembering(Protocol):
    """A schedule with a memory."""

    def judged(self, result: Mapping[str, float], /) -> None:
        """Take note of a validation result: `score`, of which more is better, and `loss`."""
        ...

    def state_dict(self) -> State:
        """What its next factor depends on besides the clock."""
        ...

    def load_state_dict(self, state: State, /) -> None:
        """Take back what `state_dict` gave."""
        ...


def remember(old: object, new: object) -> None:
    """Let a schedule go on from what an earlier one of its kind has seen; others are left as they are."""
    if isinstance(old, Remembering) and isinstance(new, Remembering) and type(old) is type(new):
        new.load_state_dict(old.state_dict())


def seen(schedule: object) -> State:
    """`{"schedule": ...}` of one with a memory, nothing of others."""
    return {"schedule": schedule.state_dict()} if isinstance(schedule, Remembering) else {}
