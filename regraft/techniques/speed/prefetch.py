"""Batches are prepared in a thread of their own while the step before them runs."""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from regraft.core import Recipe, Stage, Technique, each_stage
from regraft.core.protocols import Source, SourceWrapper
from regraft.core.values import Batch
from regraft.errors import Conflict, RunError

WAIT_S = 0.05  # between two looks at whether the batches are still wanted
ALIVE_S = 0.5  # between two looks at whether the thread that makes them still lives
LEAVE_S = 10.0  # for the batch being made to be finished, when no more are wanted


class Prefetched(SourceWrapper):
    """`base` with its next batches made ahead, in their order, in a thread that lives as long as the iterator.

    Where the model is on a GPU and the batches are not, they are pinned in the thread and copied there without waiting.
    """

    def __init__(self, base: Source, *, batches: int) -> None:
        """Keep at most `batches` batches ready."""
        super().__init__(base)
        self.ahead = batches

    def batches(self, model: nn.Module, start: int = 0, /) -> Iterator[Batch]:
        """The source's batches; what it raises is raised here, at the batch it was raised for."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        feed = _Feed(self.base.batches(model, start), size=self.ahead, pin=device.type == "cuda")
        try:
            while True:
                batch = feed.take()
                if batch is None:
                    return
                yield batch if device.type == "cpu" else to_device(batch, device)
        finally:
            feed.close()


class _Feed:
    """An iterator that another thread runs ahead of whoever takes from it. Whatever ends the thread, nobody waits for it."""

    def __init__(self, iterator: Iterator[Batch], *, size: int, pin: bool) -> None:
        self.iterator, self.pin, self.closed = iterator, pin, threading.Event()
        self.taken = 0  # batches
        self.ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=size)
        self.thread = threading.Thread(target=self._run, name="regraft-prefetch", daemon=True)
        self.thread.start()

    def take(self) -> Batch | None:
        """The next batch; None after the last.

        Raises:
            RunError: the thread has ended, and not by an error of the source; those are raised as they are.
        """
        item = self._wait()
        if isinstance(item, BaseException):
            if isinstance(item, Exception) and not isinstance(item, StopIteration):
                raise item
            raise _ended(f"by {type(item).__name__}({item})") from item
        self.taken += 1
        return item

    def _wait(self) -> Batch | BaseException | None:
        """What the thread has made next, as long as it lives or has left something."""
        while True:
            alive = self.thread.is_alive()  # before the look: what it leaves is there once it has ended
            try:
                return self.ready.get(timeout=ALIVE_S if alive else 0)
            except queue.Empty:
                if not alive:
                    raise _ended(f"without a word after {self.taken:,} batches") from None

    def close(self) -> None:
        """End the thread, and wait until it has; one that is stuck in its batch is left behind, with a warning."""
        self.closed.set()
        self.thread.join(LEAVE_S)
        if self.thread.is_alive():
            warnings.warn(
                f"Prefetch: the thread that makes batches has not finished its batch in {LEAVE_S:g} s, and is left behind",
                RuntimeWarning,
                stacklevel=2,
            )

    def _run(self) -> None:
        try:
            for batch in self.iterator:
                if not self._put(pinned(batch) if self.pin else batch):
                    return
            self._put(None)
        except BaseException as error:  # whatever it is, it belongs to the loop that waits for the batch
            self._put(error)

    def _put(self, item: Batch | BaseException | None) -> bool:
        """Wait for room; False when nobody wants the item any more."""
        while not self.closed.is_set():
            try:
                self.ready.put(item, timeout=WAIT_S)
            except queue.Full:
                continue
            return True
        return False


def _ended(how: str) -> RunError:
    return RunError(
        f"Prefetch: the thread that makes batches was ended {how}; resume the run, or drop Prefetch to see the batch it stops at"
    )


def pinned(batch: Batch) -> Batch:
    """The batch in page-locked memory, from which a GPU copies while the processor goes on."""
    return {key: value.pin_memory() if value.device.type == "cpu" else value for key, value in batch.items()}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device, copied without waiting where its memory is pinned."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


class Prefetch(Technique):
    """Prepares the next batches in a thread while the step runs: decoding, augmenting, padding, and the copy to a GPU.

    Order and content are those without it, bit for bit, and so is a resumed run. An error in the thread surfaces in the loop
    at the batch it belongs to, and a thread that dies without one is noticed; the thread ends with the stage. Listed before a
    technique that runs a model on the batches (`Distillation`), it leaves that model in the loop's thread.

    Use it when making a batch takes a noticeable part of a step and a processor core is idle meanwhile: beside a GPU, or with
    training on fewer threads than there are cores. Not when every core trains already, as on a CPU by default: there the
    thread takes from the step what it gives. Rollouts are refused, since they are drawn from the weights of their step.

    Attributes:
        batches: how many are kept ready at most; each costs its own memory.

    Example:
        ```yaml
        techniques:
          - Prefetch: {batches: 2}
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"source"})
    batches: int = Field(default=2, ge=1)

    def apply(self, recipe: Recipe) -> Recipe:
        """Every stage's source is run ahead."""
        return each_stage(recipe, self._ahead)

    def _ahead(self, stage: Stage[Any]) -> Stage[Any]:
        if stage.source.state_dict():
            raise Conflict(
                f"Prefetch: what stage {stage.name!r} draws depends on more than the step's number (rollouts are drawn from "
                "the weights of their step), so it cannot be drawn ahead; drop Prefetch"
            )
        return replace(stage, source=Prefetched(stage.source, batches=self.batches))
