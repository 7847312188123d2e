"""Being asked to stop: SIGTERM and SIGINT become a request that the run answers at its next safe point.

    with listening() as stop:
        fit(recipe, hooks=[Checkpointer(folder, every=50, stop=stop)])

The second signal of a kind ends the process at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and did so where it can be gone on with. `exit_code` is 143 for SIGTERM and 130 for SIGINT."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class Stop:
    """Whether somebody has asked the run to stop, and by which signal."""

    def __init__(self) -> None:
        self.requested: int | None = None
        self._held = False

    def check(self) -> None:
        """A safe point.

        Raises:
            Interrupted: the run was asked to stop, and nothing holds it.
        """
        if not self._held:
            self.obey()

    def obey(self) -> None:
        """End the run if that was asked for; what holds the run calls this at its own safe points.

        Raises:
            Interrupted: it was.
        """
        if self.requested is not None:
            raise Interrupted(self.requested)

    @contextmanager
    def held(self) -> Generator[None]:
        """In this block the run has safe points of its own, and `check` is none."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before


@contextmanager
def listening() -> Generator[Stop]:
    """What the block asks about being stopped; before and after it the signals do what they did.

    Only the main thread can listen, and only to signals that nobody has a handler of their own for or ignores.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    terminal = sys.stderr.isatty()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.requested = stop.requested or number
        signal.signal(number, signal.SIG_DFL)
        if terminal:
            os.write(2, b"\nregraft: stopping at the next safe point; once more ends at once\n")

    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = {number: handler for number, handler in before.items() if handler in usual}
    for number in taken:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
