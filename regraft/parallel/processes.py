"""Other processes that do pieces of work and may be killed at any time, without anything being lost or waited for in vain.

Each is started with a piece of work by number. `wait` gives (number, kind, content): `result` with what the function returned,
`died` with how the process ended, `stopped` where it was asked to, or `error` with what was raised.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Event = tuple[int, str, Any]
SILENT = 20.0  # seconds without a heartbeat after which a process is taken for dead
LEAVE = 60.0  # seconds that a process which was asked to stop has for saving


@dataclass
class Process:
    """A worker, and what it is at work on."""

    popen: subprocess.Popen[bytes]
    line: socket.socket
    heard: float
    number: int | None = None
    text: bytes = b""


class Processes:
    """Fresh Python processes; one that dies is replaced when there is work for it."""

    def __init__(
        self, count: int, target: str, *, log: Path, silent: float = SILENT, threads: int | None = None
    ) -> None:
        """Workers, none of which is there yet.

        Args:
            count: how many at once.
            target: `module:function`, called with a piece of work.
            log: where they write what they print.
            silent: seconds without a heartbeat after which one is killed.
            threads: of each, where the environment does not say how many; by default the processors are shared out.
        """
        self.count, self.target, self.log, self.silent = count, target, log, silent
        self.threads = threads or max(1, (os.cpu_count() or 1) // count)
        self.processes: list[Process] = []
        self.selector = selectors.DefaultSelector()

    @property
    def free(self) -> int:
        """How many could begin something now."""
        return self.count - sum(process.number is not None for process in self.processes)

    def start(self, number: int, work: dict[str, Any]) -> None:
        """Give it to an idle worker, or to a new one."""
        idle = next((process for process in self.processes if process.number is None), None)
        worker = self._begin() if idle is None else idle
        worker.number = number
        try:
            worker.line.sendall(json.dumps(work).encode() + b"\n")
        except OSError:
            return  # it has died; `wait` finds that out

    def wait(self, seconds: float) -> list[Event]:
        """Answers and deaths, as soon as there is one."""
        deadline = time.monotonic() + seconds
        while True:
            events: list[Event] = []
            for key, _ in self.selector.select(max(0.0, min(1.0, deadline - time.monotonic()))):
                events += self._read(key.data)
            for process in list(self.processes):
                if time.monotonic() - process.heard > self.silent:
                    process.popen.kill()
                    events += self._buried(process, f"gave no sign of life for {self.silent:.0f} s and was killed")
            if events or time.monotonic() >= deadline or not self.processes:
                return events

    def stop(self) -> list[Event]:
        """Send SIGTERM to those at work, and wait until each has saved and answered, or ended."""
        for process in self.processes:
            if process.number is not None:
                process.popen.send_signal(signal.SIGTERM)
        deadline, events = time.monotonic() + LEAVE, list[Event]()
        while self.free < self.count and time.monotonic() < deadline:
            events += self.wait(1.0)
        return events

    def close(self) -> None:
        """Close the lines, which ends the idle ones at once and kills the others."""
        for process in list(self.processes):
            busy = process.number is not None
            self._remove(process)
            if busy:
                process.popen.kill()
            try:
                process.popen.wait(5)
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()
        self.selector.close()

    def _begin(self) -> Process:
        ours, theirs = socket.socketpair()
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = {"OMP_NUM_THREADS": str(self.threads)} | dict(os.environ) | {"PYTHONPATH": paths}
        command = [sys.executable, "-m", "regraft.parallel.worker", self.target, str(theirs.fileno())]
        with self.log.open("ab") as log, theirs:
            popen = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        process = Process(popen, ours, time.monotonic())
        self.processes.append(process)
        self.selector.register(ours, selectors.EVENT_READ, process)
        return process

    def _read(self, process: Process) -> list[Event]:
        try:
            got = process.line.recv(1 << 20)
        except OSError:
            got = b""
        if not got:
            return self._buried(process, _ending(process.popen))
        process.heard = time.monotonic()
        *lines, process.text = (process.text + got).split(b"\n")
        events: list[Event] = []
        for message in map(json.loads, lines):
            if "beat" not in message and process.number is not None:
                ((kind, content),) = message.items()
                events.append((process.number, kind, content))
                process.number = None
        return events

    def _buried(self, process: Process, reason: str) -> list[Event]:
        """A worker has died: what it was at work on."""
        self._remove(process)
        process.popen.wait()
        return [] if process.number is None else [(process.number, "died", reason)]

    def _remove(self, process: Process) -> None:
        self.selector.unregister(process.line)
        process.line.close()
        self.processes.remove(process)


def _ending(popen: subprocess.Popen[bytes]) -> str:
    """How a process ended that closed its line."""
    try:
        code = popen.wait(5)
    except subprocess.TimeoutExpired:
        popen.kill()
        return "closed its line and was killed"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
