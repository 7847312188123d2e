"""What a person sees while the main job runs. The phases speak to a `Reporter`; the command line draws it."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Told what is going on. All methods return at once."""

    def phase(self, name: str, what: str, /) -> None:
        """A phase begins; `what` says in a few words what it does."""
        ...

    def say(self, sentence: str, /) -> None:
        """Something worth a line on the screen: a finding, a choice, a number."""
        ...

    def begin(self, label: str, total: int, unit: str, /) -> None:
        """A countable piece of work begins."""
        ...

    def advance(self, done: int, note: str = "", /) -> None:
        """`done` more units of it; `note` is the newest number, such as the loss."""
        ...

    def end(self) -> None:
        """The piece of work is over."""
        ...


class Silent:
    """A reporter that shows nothing."""

    def phase(self, name: str, what: str, /) -> None:
        """Nothing."""

    def say(self, sentence: str, /) -> None:
        """Nothing."""

    def begin(self, label: str, total: int, unit: str, /) -> None:
        """Nothing."""

    def advance(self, done: int, note: str = "", /) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""
