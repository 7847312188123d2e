"""Checkpoints of a run: when one is written, which are kept, and which one is gone on from.

A step waits for a copy of the state only; a thread writes it. What a folder holds and how it is verified is in `core.snapshot`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from weakref import WeakValueDictionary

from torch import Tensor

from regraft.core.files import clean, discard
from regraft.core.protocols import Hook, State
from regraft.core.run import Run
from regraft.core.sizing import expected_bytes, require_room
from regraft.core.snapshot import Snapshot, load, read_manifest, save, take, write
from regraft.core.stopping import Stop
from regraft.core.values import Loss
from regraft.errors import RunError

__all__ = ["Best", "Checkpointer", "find_newest", "load", "load_newest", "save"]


def load_newest(folder: Path) -> tuple[State, Path, list[str]] | None:
    """The newest sound checkpoint below `folder`, where it lies, and a sentence for each damaged one that was passed over.

    Newest is the one of the latest step; no clock is asked. A checkpoint that this process is still writing is waited for.
    """
    found, damaged = find_newest(folder)
    return None if found is None else (*found, damaged)


def find_newest(folder: Path) -> tuple[tuple[State, Path] | None, list[str]]:
    """As `load_newest`, with the sentences where none is sound as well."""
    writer = _writers.get(folder.resolve())
    if writer is not None:
        writer.join()
    damaged: list[str] = []
    for path in _saved(folder)[::-1]:
        try:
            return (load(path), path), damaged
        except RunError as error:
            damaged.append(str(error))
    return None, damaged


@dataclass(frozen=True)
class Best:
    """Checkpoints to keep for their validation score: those of the `keep` highest, saved at the step they were measured."""

    keep: int
    score: Callable[[Run], float | None]  # of the step just made, where it was validated


class Checkpointer(Hook):
    """Saves the run every `every` steps and keeps the newest `keep` checkpoints, and the best ones where that is asked for.

    It belongs at the end of the run's hooks: those before it have then acted on the step. A write that failed ends the run
    at the next step. Use it as a context manager where the run may end with an exception: no write is under way after it.

    Args:
        folder: where the checkpoints are.
        every: steps between two of them.
        keep: how many of the newest are kept; those of a later step than the last one written, left by a run that was gone
            on with from an earlier point, are removed.
        best: keeps others as well.
        stop: when it is requested the run is saved after the step, and ended.
        later: bytes that hooks will add to the state later, for the estimate of the room needed.
        enabled: while this is false it only keeps its place among the hooks.
    """

    def __init__(
        self, folder: Path, *, every: int, keep: int = 2, best: Best | None = None, stop: Stop | None = None,
        later: int = 0, enabled: bool = True,
    ) -> None:  # fmt: skip
        self.folder, self.every, self.keep, self.best, self.enabled = folder, every, keep, best, enabled
        self.stop, self.later = stop or Stop(), later
        self.writer = _writer(folder)
        self.buffers: dict[str, Tensor] = {}
        self.scores: list[float] = []  # of the best checkpoints so far, highest first
        self.looked = -1  # index of the stage whose checkpoints were found to fit on the disk,
        self.size = 0  # and the size they were expected to have

    def on_start(self, run: Run) -> None:
        """Before the first step of a stage: put the folder in order, see whether there is room for its checkpoints, and save.

        Raises:
            RunError: there is not.
        """
        if not self.enabled or self.looked == run.index:
            return
        self.looked = run.index
        self.writer.wait()
        clean(self.folder)
        self._require_room(expected_bytes(run) + self.later)
        best = 0 if self.best is None else self.best.keep
        self.scores = sorted((score for _, score in _scored(self.folder)), reverse=True)[:best]
        if run.index > 0 and run.clock.step == 0:  # the step before it is not saved, for its stage was not over yet
            self.save(run)

    def _require_room(self, size: int) -> None:
        self.size = size
        best = 0 if self.best is None else self.best.keep
        require_room(self.folder, size=size, copies=self.keep + best + 1)  # one is written while the others are there

    def on_step(self, run: Run, loss: Loss) -> None:
        """Save when a multiple of `every` steps has been made, when the model is among the best, and before a stop.

        Raises:
            RunError: the write before has failed.
            Interrupted: the run was asked to stop; it is saved.
        """
        if not self.enabled:
            return
        self.writer.check()
        if run.stopped or run.clock.step == run.clock.total:  # what follows begins with a safe point
            self.writer.wait()
            return
        score = None if self.best is None else self.best.score(run)
        if run.clock.step % self.every == 0 or self._among_best(score) or self.stop.requested is not None:
            self.save(run, score=score)
        if self.stop.requested is not None:
            self.writer.wait()
            self.stop.obey()

    def on_end(self, run: Run) -> None:
        """Wait for the checkpoint that is being written.

        Raises:
            RunError: it could not be.
        """
        self.writer.wait()

    def save(self, run: Run, *, score: float | None = None) -> Path:
        """Save now; returns the checkpoint's folder, which is complete when the next save begins or the stage ends.

        Raises:
            RunError: the write before has failed, or the state has grown beyond what the disk has room for.
        """
        self.writer.wait()
        done = sum(stage.steps for stage in run.recipe.stages[: run.index]) + run.clock.step
        path = self.folder / f"step-{done:08d}"
        snapshot = take(run.state_dict(), self.buffers)
        if snapshot.tensor_bytes() > 1.02 * self.size:  # a hook has begun to remember something
            self._require_room(snapshot.bytes())
        self.writer.start(lambda: self._write(path, snapshot, score))
        return path

    def _write(self, path: Path, snapshot: Snapshot, score: float | None) -> None:
        write(path, snapshot, score=score)
        prune(self.folder, newest=path, keep=self.keep, best=0 if self.best is None else self.best.keep)

    def _among_best(self, score: float | None) -> bool:
        """Is a score among the highest so far? It is counted from now on."""
        if self.best is None or score is None or (len(self.scores) == self.best.keep and score <= self.scores[-1]):
            return False
        self.scores = sorted([*self.scores, score], reverse=True)[: self.best.keep]
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for what is being written; an error of it is raised unless there is another one already."""
        if kind is None:
            self.writer.wait()
        else:
            self.writer.join()


def prune(folder: Path, *, newest: Path, keep: int, best: int = 0) -> None:
    """Remove checkpoints: all but the `keep` last up to `newest`, which was just written, and the `best` by score."""
    there = _saved(folder)
    kept = {newest, *[path for path in there if path <= newest][-keep:]}
    if best:
        ranked = sorted(_scored(folder), key=lambda pair: (-pair[1], pair[0]))
        kept |= {path for path, _ in ranked[:best]}
    for path in there:
        if path not in kept:
            discard(path)


def _saved(folder: Path) -> list[Path]:
    """The checkpoints of a folder, by step."""
    return sorted(folder.glob("step-*"))


def _scored(folder: Path) -> list[tuple[Path, float]]:
    """The checkpoints that were saved for their score; a damaged manifest has none."""
    found: list[tuple[Path, float]] = []
    for path in _saved(folder):
        try:
            score = read_manifest(path)["score"]
        except RunError:
            continue
        if score is not None:
            found.append((path, float(score)))
    return found


# ---- the thread that writes


class Writer:
    """Writes one thing at a time in a thread. An error is raised to whoever asks next, and never lost."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Do the work in the background; what was begun before must have been waited for."""
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint")
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            _yield_the_processor()
            work()
        except BaseException as error:
            self._error = error

    def join(self) -> None:
        """Wait until nothing is being written; an error is kept for `wait`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            RunError: what was written last has failed.
        """
        self.join()
        self.check()

    def check(self) -> None:
        """Raise the error of a write that has failed already; does not wait."""
        error, self._error = self._error, None
        if error is not None:
            raise error


def _yield_the_processor() -> None:
    """Let the steps go first: this thread takes what they leave idle. A priority belongs to a thread on Linux only."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + 10))


_writers: WeakValueDictionary[Path, Writer] = WeakValueDictionary()  # by folder: who reads there waits for who writes


def _writer(folder: Path) -> Writer:
    """The one writer of this process for a folder."""
    place = folder.resolve()
    writer = _writers.get(place)
    if writer is None:
        writer = _writers[place] = Writer()
    return writer
