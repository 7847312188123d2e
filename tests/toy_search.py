"""Work for worker processes that takes no time and imports nothing heavy: a function with a known best point."""

from __future__ import annotations

import math
import os
import signal
import time


def branin(x: float, y: float) -> float:
    """Branin's function; its least value is 0.397887, at three points of [-5, 10] x [0, 15]."""
    return (
        (y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6) ** 2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10
    )


def score(work: dict) -> dict:
    """Branin at the drawn point, as the outcome of a leg: higher is better, and the same for every share."""
    drawn = work["leg"]["drawn"]
    value = branin(drawn["x"], drawn["y"])
    return {"leg": work["leg"]["number"], "state": "COMPLETE", "score": -value, "loss": value, "steps": 1}


def fragile(work: dict) -> dict:
    """As `score`; the processes of legs named in `kill` end at once, as many times as it says."""
    number = str(work["leg"]["number"])
    marks = work["marks"]
    times = work["kill"].get(number, 0)
    for attempt in range(times):
        mark = os.path.join(marks, f"{number}-{attempt}")
        if not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
    return score(work)


def frozen(work: dict) -> dict:
    """As `score`; the process of leg 1 stops for good the first time, heartbeat and all."""
    mark = os.path.join(work["marks"], "frozen")
    if work["leg"]["number"] == 1 and not os.path.exists(mark):
        open(mark, "w").close()
        os.kill(os.getpid(), signal.SIGSTOP)
    return score(work)


def slow(work: dict) -> dict:
    """As `score`, after 0.1 s."""
    time.sleep(0.1)
    return score(work)


def broken(work: dict) -> dict:
    """What no trial can help."""
    raise OSError("no space left on device")


def deaf(work: dict) -> dict:
    """As `score`, long after it should have been stopped; SIGTERM kills the process, as one that is still importing."""
    time.sleep(30)
    return score(work)
