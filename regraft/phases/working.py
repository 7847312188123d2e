"""Working on a run directory: one process at a time, stopped at safe points, a failing disk told as a sentence."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from regraft.core.files import clean
from regraft.core.stopping import Stop, listening
from regraft.errors import RunError
from regraft.phases.progress import Reporter
from regraft.phases.rundir import LOCK, RECIPE, RunDirectory

DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
_held: set[int] = (
    set()
)  # descriptors of locked files; a forked process lets go of them, or it would hold them for its parent


@contextmanager
def working(run: RunDirectory, reporter: Reporter, *, fresh: bool = False) -> Generator[tuple[Reporter, Stop]]:
    """The run directory for this process alone; what to report to, which is a safe point to stop at, and whether to stop.

    Args:
        run: the run directory; what a killed process left half-written in it is removed.
        reporter: whom the phases speak to.
        fresh: is the run about to be begun?

    Raises:
        RunError: another process works there; it holds a run although it should be new; or the disk fails.
        Interrupted: SIGTERM or SIGINT came, and the run can be resumed.
    """
    with locked(run.path), listening() as stop:
        if fresh and (run.path / RECIPE).exists():
            raise RunError(f"{run.path}: another process has begun a run there; give another --out")
        run.say = reporter.say
        try:
            for folder in (run.path, *(path for path in run.path.iterdir() if path.is_dir())):
                clean(folder)
            yield Attentive(reporter, stop), stop
        except (OSError, SafetensorError) as error:
            reason = disk_trouble(error)
            if reason is None:
                raise
            raise RunError(f"{run.path}: the disk failed ({reason}); put that right there and resume") from error


def disk_trouble(error: BaseException) -> str | None:
    """What the disk had against it, if it was the disk; libraries written in other languages say so in words only."""
    if isinstance(error, OSError):
        return error.strerror if error.errno in DISK else None
    return next((os.strerror(number) for number in DISK if f"os error {number})" in str(error)), None)


class Attentive:
    """A reporter that hands everything on, and ends the job at its next word when it was asked to stop."""

    def __init__(self, reporter: Reporter, stop: Stop) -> None:
        self.reporter, self.stop = reporter, stop

    def phase(self, name: str, what: str, /) -> None:
        """Between two phases is a safe point."""
        self.stop.check()
        self.reporter.phase(name, what)

    def say(self, sentence: str, /) -> None:
        """Handed on."""
        self.reporter.say(sentence)

    def begin(self, label: str, total: int, unit: str, /) -> None:
        """So is the begin of a piece of work: no file of its phase is there yet."""
        self.stop.check()
        self.reporter.begin(label, total, unit)

    def advance(self, done: int, note: str = "", /) -> None:
        """And each piece of it."""
        self.stop.check()
        self.reporter.advance(done, note)

    def end(self) -> None:
        """Handed on."""
        self.reporter.end()


# ---- the lock


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """The lock of a run directory. The system gives it back when the process ends, however it ends.

    Raises:
        RunError: another process has it, or the folder cannot be written to.
    """
    file = folder / LOCK
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise RunError(f"{file}: cannot be written ({error.strerror}); a run needs a folder it can write to") from error
    try:
        _take(descriptor, folder)
        _held.add(descriptor)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _take(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(
            f"{folder}: {_holder(descriptor)} is working on this run; wait until it ends, or stop it"
        ) from None
    except OSError as error:
        raise RunError(
            f"{folder}: its disk knows no locks ({error.strerror}), so that two processes could write there; give a folder "
            "on another disk"
        ) from error
    content = json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)


def _holder(descriptor: int) -> str:
    """`process 42 on host somewhere`, as it has written into the lock."""
    try:
        said = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(said['process'])} on host {str(said['host'])[:100]}"
    except (ValueError, KeyError, TypeError):
        return "another process"  # it has just taken the lock, and has not written yet


def _let_go() -> None:
    """In a forked process: its parent's locks are not its own, and end with the parent."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
