"""The fault lab: runs in forked processes that can die at any instant, what they leave behind, and counts for the record.

A process is forked from one that has imported everything, so it costs milliseconds instead of seconds. It shares no memory
with its parent but what it is handed on purpose, and it always ends by `os._exit`: nothing of the test session runs in it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import select
import signal
import struct
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DIED = 41  # exit code of a process that an injector ended by `os._exit`
RAISED = 42  # of one in which something was raised
RESULTS = "REGRAFT_FAULT_RESULTS"  # environment variable: a JSON file that counts are kept in


class Crash(BaseException):
    """Stands for anything that ends a run in the middle of a line; not an Exception, so that nothing handles it."""


@dataclass(frozen=True)
class Ended:
    """How a process came to its end."""

    code: int  # exit code, or minus the signal's number
    value: Any = None  # what it returned, as JSON gives it back
    error: str = ""  # what was raised in it

    def result(self) -> Any:
        """What it returned; an AssertionError with its traceback where it failed."""
        assert self.code == 0, f"the process ended with {self.code}\n{self.error}"
        return self.value


class Forked:
    """A process that runs `work`."""

    def __init__(self, work: Callable[[], Any]) -> None:
        read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(read)
            _live(work, write)
        os.close(write)
        self.pipe = read

    def kill_after(self, seconds: float) -> None:
        """SIGKILL after some time, if it still lives."""
        time.sleep(max(0.0, seconds))
        os.kill(
            self.pid, signal.SIGKILL
        )  # a process that has ended is a zombie until it is waited for: that is no error

    def lives(self) -> bool:
        """Has it not ended yet? Its end is still to be waited for."""
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return ended is None

    def wait(self, timeout: float = 120.0) -> Ended:
        """Its end; it is killed where it takes longer than `timeout` seconds."""
        said, end = b"", time.monotonic() + timeout
        while True:
            ready, _, _ = select.select([self.pipe], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                os.kill(self.pid, signal.SIGKILL)
                break
            part = os.read(self.pipe, 1 << 16)
            if not part:
                break
            said += part
        os.close(self.pipe)
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return Ended(0, json.loads(said))
        return Ended(code, error=said.decode(errors="replace"))


def _live(work: Callable[[], Any], write: int) -> None:
    """The whole life of a forked process."""
    code, said = RAISED, b""
    try:
        said = json.dumps(work()).encode()
        code = 0
    except BaseException:
        said = traceback.format_exc().encode()
    finally:
        try:
            while said:
                said = said[os.write(write, said) :]
        finally:
            os._exit(code)


def forked(work: Callable[[], Any], *, timeout: float = 120.0) -> Ended:
    """The end of a process that ran `work`."""
    return Forked(work).wait(timeout)


class Counter:
    """A number that a forked process sets and its parent can read after it was killed."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8)

    def set(self, value: int) -> None:
        """Set it."""
        struct.pack_into("q", self.memory, 0, value)

    @property
    def value(self) -> int:
        """What it was last set to."""
        return int(struct.unpack_from("q", self.memory, 0)[0])


# ---- digests


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def state_hash(value: object) -> str:
    """sha256 of nested state: names, types, shapes and bytes of tensors, and the exact digits of numbers."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: Any, value: object) -> None:
    if isinstance(value, Tensor):
        whole = value.detach().contiguous()
        digest.update(f"{whole.dtype}{tuple(whole.shape)}".encode())
        digest.update(whole.view(-1).view(torch.uint8).numpy().tobytes() if whole.numel() else b"")
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(f"{key}:".encode())
            _feed(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}]".encode())
        for item in value:
            _feed(digest, item)
    else:
        digest.update(repr(value).encode())


# ---- the record


def record(family: str, counts: Mapping[str, Any]) -> None:
    """Print what a family of faults came to; keep it where the environment variable names a file."""
    print(f"\n{family}: {json.dumps(counts)}")
    place = os.environ.get(RESULTS)
    if not place:
        return
    path = Path(place)
    known = json.loads(path.read_text()) if path.exists() else {}
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(known | {family: dict(counts)}, indent=1) + "\n")
    beside.replace(path)
