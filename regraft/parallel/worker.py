"""A worker process: `python -m regraft.parallel.worker module:function DESCRIPTOR`.

It reads a line of JSON for each piece of work from a socket, calls the function, and writes a line with the answer. A thread
writes a heartbeat every second, and ends the process once nobody listens: whoever is killed leaves no workers behind.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from importlib import import_module
from typing import Any

BEAT = 1.0  # seconds


class Line:
    """The socket, which two threads write to."""

    def __init__(self, descriptor: int) -> None:
        self.socket = socket.socket(fileno=descriptor)
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """A line of JSON. The process ends where nobody listens any more."""
        try:
            with self._lock:
                self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            os._exit(1)

    def beat(self) -> None:
        """A heartbeat for as long as the process lives."""
        while True:
            self.send({"beat": True})
            time.sleep(BEAT)


def answer(target: str, work: Any) -> dict[str, Any]:
    """What `module:function` makes of a piece of work: `result`, `stopped` where a signal ended it, or `error`."""
    module, _, name = target.partition(":")
    try:
        return {"result": getattr(import_module(module), name)(work)}
    except KeyboardInterrupt:  # which `core.stopping.Interrupted` is
        return {"stopped": True}
    except Exception as error:
        import traceback

        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def main(target: str, descriptor: int) -> None:
    """Work until the other end closes the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal's whole group: who started it decides, with SIGTERM
    line = Line(descriptor)
    threading.Thread(target=line.beat, daemon=True).start()
    try:
        for text in line.socket.makefile("rb"):
            line.send(answer(target, json.loads(text)))
    except ConnectionResetError:
        return  # the other end is gone, as when it closes the socket


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
