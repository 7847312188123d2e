"""Who does the work of a search: this process, or others, here or elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from regraft.parallel.processes import Event


class Workers(Protocol):
    """Those who do the work."""

    count: int

    @property
    def free(self) -> int:
        """How many could begin something now."""
        ...

    def start(self, number: int, work: dict[str, Any]) -> None:
        """Have a piece of work begun; somebody is free."""
        ...

    def wait(self, seconds: float) -> list[Event]:
        """What has happened since the last call; returns at once where something has."""
        ...

    def stop(self) -> list[Event]:
        """Ask all to stop, and wait until they have; what happened meanwhile."""
        ...

    def close(self) -> None:
        """Let all of them go."""
        ...


class Here:
    """This process; work is done while it is started."""

    count = 1

    def __init__(self, function: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self.function = function
        self.events: list[Event] = []

    @property
    def free(self) -> int:
        """One, until the last event was fetched."""
        return 0 if self.events else 1

    def start(self, number: int, work: dict[str, Any]) -> None:
        """Do it."""
        try:
            self.events.append((number, "result", self.function(work)))
        except KeyboardInterrupt:  # which `core.stopping.Interrupted` is
            self.events.append((number, "stopped", None))

    def wait(self, seconds: float) -> list[Event]:
        """What has been done."""
        events, self.events = self.events, []
        return events

    def stop(self) -> list[Event]:
        """Nothing is under way between two calls."""
        return self.wait(0)

    def close(self) -> None:
        """Nothing to let go of."""
