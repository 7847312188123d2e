"""The loop of a search: legs are asked for, worked on, and their outcomes told, each exactly once, whoever dies meanwhile.

Where results are told in the order of legs (`window`), leg n is asked for when the outcomes of all legs up to n - window are
known, and no others: the search is then the same for any number of workers up to the window. Else they are told as they arrive.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from regraft.errors import RunError
from regraft.parallel.processes import Event
from regraft.search.journal import Journal
from regraft.search.legs import FAIL, RETRY, Leg, Outcome
from regraft.search.schedulers import Scheduler
from regraft.search.workers import Workers

ATTEMPTS = 2  # of a leg whose worker dies
PULSE = 1.0  # seconds between two looks at the clock and at signals


@dataclass
class Engine:
    """One search under way."""

    scheduler: Scheduler
    journal: Journal
    metric: str = "score"
    window: int | None = None
    legs: dict[int, Leg] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    lost: dict[int, list[str]] = field(default_factory=dict)  # leg -> how its workers died
    told: int = 0  # in the order of legs, where there is a window

    # ---- what is known

    def replay(self) -> list[Leg]:
        """Stand where the journal ends; the legs that were asked for and have no outcome.

        Raises:
            RunError: the journal is of another search, or of another version.
        """
        for record in self.journal.read():
            ((kind, content),) = record.items()
            if kind == "ask":
                leg = self._next()
                if leg is None or leg.to_json() != content:
                    raise RunError(
                        f"{self.journal.path}: leg {content.get('number')} is not the one this recipe and this version of "
                        "regraft would try; go on with what the search was begun with, or begin another one"
                    )
                self.legs[leg.number] = leg
            elif kind == "end":
                try:
                    outcome = Outcome(**content)
                except TypeError as error:
                    raise RunError(
                        f"{self.journal.path}: an outcome is not as this version of regraft writes it ({error}); go on with the "
                        "version the search was begun with, or begin another one"
                    ) from None
                self._ended(outcome)
            elif kind == RETRY:
                self.lost.setdefault(int(content["leg"]), []).append(str(content["reason"]))
        return [leg for number, leg in self.legs.items() if number not in self.outcomes]

    def _next(self) -> Leg | None:
        """The next leg, after telling the outcomes it may depend on; None where one is missing, or there is no more."""
        if self.window is None:
            return self.scheduler.ask()
        while True:
            if len(self.legs) - self.told < self.window:
                leg = self.scheduler.ask()
                if leg is not None:
                    return leg
            if self.told not in self.outcomes:
                return None
            self._tell(self.told)
            self.told += 1

    def _ended(self, outcome: Outcome) -> None:
        """Keep an outcome, the first of its leg."""
        if outcome.leg in self.outcomes:
            raise RunError(f"{self.journal.path}: leg {outcome.leg} has ended twice")
        self.outcomes[outcome.leg] = outcome
        if self.window is None:
            self._tell(outcome.leg)

    def _tell(self, number: int) -> None:
        self.scheduler.tell(self.legs[number], self.outcomes[number].worth(self.metric))

    # ---- the loop

    def run(
        self,
        workers: Workers,
        work_of: Callable[[Leg], dict[str, Any]],
        *,
        seconds: float | None = None,
        stopping: Callable[[], bool] = lambda: False,
        on_end: Callable[[Leg, Outcome], None] = lambda leg, outcome: None,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> bool:
        """Work until there is nothing more to ask for, the time is over, or it is asked to stop.

        Args:
            workers: who does the work; not closed here.
            work_of: what a worker is given for a leg.
            seconds: no leg is asked for after these; those under way are finished.
            stopping: was it asked to stop?
            on_end: told of each outcome.
            say: told of each worker that died.

        Returns:
            Whether the search is over.

        Raises:
            RunError: a worker met something that is no fault of its trial, such as a full disk.
        """
        waiting = deque(self.replay())
        deadline = None if seconds is None else time.monotonic() + seconds
        running: set[int] = set()
        while not stopping():
            late = deadline is not None and time.monotonic() >= deadline
            while workers.free and not stopping():
                leg = waiting.popleft() if waiting else None if late else self._asked()
                if leg is None:
                    break
                running.add(leg.number)
                workers.start(leg.number, work_of(leg))
            if not running:
                return not late or self._asked_nothing_more()
            for event in workers.wait(PULSE):
                self._happened(event, running, waiting, on_end, say)
        for event in workers.stop():
            if event[1] != "died":  # of being stopped, before it listened for that: no fault of its trial
                self._happened(event, running, waiting, on_end, say)
        return False

    def _asked(self) -> Leg | None:
        """A new leg, written down."""
        leg = self._next()
        if leg is not None:
            self.legs[leg.number] = leg
            self.journal.write({"ask": leg.to_json()})
        return leg

    def _asked_nothing_more(self) -> bool:
        """Called at the deadline with nothing under way: was there nothing left to ask for anyway? Asks for a leg to find out."""
        return self._asked() is None

    def _happened(
        self,
        event: Event,
        running: set[int],
        waiting: deque[Leg],
        on_end: Callable[[Leg, Outcome], None],
        say: Callable[[str], None],
    ) -> None:
        """Take down what a worker answered, or how it died."""
        number, kind, content = event
        running.discard(number)
        leg = self.legs[number]
        attempts = 1 + len(self.lost.get(number, ()))
        if kind == "result":
            self._end(leg, replace(Outcome(**content), attempts=attempts), on_end)
        elif kind == "error":
            raise RunError(f"trial {leg.trial}: {content}; put that right and resume the search")
        elif kind == "stopped":
            waiting.appendleft(leg)
        elif kind == "died" and attempts < ATTEMPTS:
            self.lost.setdefault(number, []).append(str(content))
            self.journal.write({RETRY: {"leg": number, "trial": leg.trial, "reason": content}})
            waiting.appendleft(leg)
            say(f"the worker of trial {leg.trial} {content}; it goes on from its checkpoint on another one")
        elif kind == "died":
            reason = f"its worker {content}, as the one before: it {self.lost[number][-1]}"
            say(f"trial {leg.trial} fails: {reason}")
            self._end(leg, Outcome(leg=number, state=FAIL, reason=reason, attempts=attempts), on_end)

    def _end(self, leg: Leg, outcome: Outcome, on_end: Callable[[Leg, Outcome], None]) -> None:
        self.journal.write({"end": outcome.to_json()})
        self._ended(outcome)
        on_end(leg, outcome)
