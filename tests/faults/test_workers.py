"""R8: a thread that works for a run and dies ends what waits for it with a named error within seconds; nothing hangs."""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
import torch
from toy import Tensors, blobs, mlp, recipe, stage

from regraft.core import Hook, compile, fit
from regraft.data.sweep import sweep
from regraft.errors import DataError, RegraftError, RunError
from regraft.techniques.speed import prefetch
from regraft.techniques.speed.prefetch import Prefetch, Prefetched
from regraft.testing import Rows

SECONDS = 30.0  # within which a dead worker must have ended the run
BATCHES = 40  # of a pass
KINDS = (OSError, DataError, MemoryError, SystemExit, KeyboardInterrupt, GeneratorExit)


def of(kind: type[BaseException]) -> type[BaseException]:
    """What it must come out as: errors as they are, and what would end the whole process as one of regraft's."""
    return kind if issubclass(kind, Exception) else RunError


def kill(name: str, kind: type[BaseException] = SystemExit) -> bool:
    """Raise something in a thread of that name, wherever it stands; False if there is none."""
    for thread in threading.enumerate():
        if thread.name == name and thread.ident is not None:
            code = ctypes.c_ulong(thread.ident)
            return ctypes.pythonapi.PyThreadState_SetAsyncExc(code, ctypes.py_object(kind)) == 1
    return False


@contextmanager
def in_time():
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < SECONDS, "it took too long to notice"
    left = [t.name for t in threading.enumerate() if t.name in ("regraft-prefetch", "regraft-sweep")]
    assert left == []


# ---- the thread that makes batches


class Failing(Tensors):
    """Raises something at one of its batches, in whichever thread makes it."""

    def __init__(self, at: int, kind: type[BaseException]) -> None:
        super().__init__(blobs())
        self.at, self.kind = at, kind

    def batches(self, model, start=0):
        for step, batch in enumerate(super().batches(model, start), start):
            if step == self.at:
                raise self.kind(f"batch {step}")
            yield batch


def fails_itself(at: int, kind: type[BaseException]) -> None:
    compiled = compile(recipe(stage(steps=40, source=Failing(at, kind))), [Prefetch(batches=1 + at % 3)])
    with in_time(), pytest.raises(of(kind), match=f"batch {at}"):
        fit(compiled)


def is_killed(at: int, kind: type[BaseException]) -> None:
    class Killer(Hook):
        def on_step(self, run, loss):
            if run.clock.step == 1 + at:
                assert kill("regraft-prefetch", kind)

    compiled = compile(recipe(stage(steps=100_000)), [Prefetch(batches=2)])
    with in_time(), pytest.raises(RunError if kind is SystemExit else of(kind)) as error:
        fit(compiled, hooks=[Killer()])
    assert not isinstance(error.value, RegraftError) or "the thread that makes batches was ended by" in str(error.value)


def vanishes(at: int) -> None:
    """The thread ends in the middle of a line, without a word to anybody."""

    class Vanishing(Tensors):
        def batches(self, model, start=0):
            for step, batch in enumerate(super().batches(model, start), start):
                if step == at:
                    prefetch._Feed._put = silent  # what it would say is lost
                    raise SystemExit
                yield batch

    def silent(feed, item):
        return False

    compiled = compile(recipe(stage(steps=40, source=Vanishing(blobs()))), [Prefetch()])
    with patch.object(prefetch._Feed, "_put", prefetch._Feed._put), in_time():  # noqa: SIM117
        with pytest.raises(RunError, match=f"was ended without a word after {at:,} batches"):
            fit(compiled)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_thread_raises_ends_the_run_with_a_named_error(kind):
    fails_itself(5, kind)


def test_a_thread_that_is_killed_ends_the_run_with_a_named_error():
    is_killed(3, SystemExit)


def test_a_thread_that_ends_without_a_word_is_noticed():
    vanishes(4)


def test_a_thread_that_is_stuck_is_left_behind_with_a_warning(monkeypatch):
    monkeypatch.setattr(prefetch, "LEAVE_S", 0.1)
    released = threading.Event()

    class Stuck(Tensors):
        def batches(self, model, start=0):
            for step, batch in enumerate(super().batches(model, start), start):
                if step == 1:
                    released.wait(20)
                yield batch

    iterator = Prefetched(Stuck(blobs()), batches=1).batches(mlp())
    next(iterator)
    begin = time.monotonic()
    with pytest.warns(RuntimeWarning, match="has not finished its batch in 0.1 s, and is left behind"):
        iterator.close()
    assert time.monotonic() - begin < 5
    released.set()


# ---- the threads of a pass over examples


class Worker:
    """A computation that raises something in the thread that makes a given batch."""

    def __init__(self, at: int, kind: type[BaseException] | None = None) -> None:
        self.at, self.kind, self.calls, self.lock = at, kind, itertools.count(), threading.Lock()

    def __call__(self, model, inputs):
        with self.lock:
            call = next(self.calls)
        if call == self.at and self.kind is not None:
            raise self.kind(f"batch {call}")
        if self.kind is not None and call > self.at:
            time.sleep(0.02)  # the whole pass would take 0.3 s more: time enough for it to be ended
        return {"out": model(inputs["x"])}


@contextmanager
def cores(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
        assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)


def passing(compute, rows: int = 64 * BATCHES) -> dict[str, torch.Tensor]:
    x = torch.arange(rows * 8, dtype=torch.float32).view(rows, 8) / rows
    return sweep(mlp(), Rows(x), compute, precision="fp32")


def pass_fails(at: int, kind: type[BaseException]) -> None:
    worker = Worker(at, kind)
    with cores(3), in_time(), pytest.raises(of(kind), match=f"batch {at}"):
        passing(worker)
    assert next(worker.calls) < BATCHES, "the others went on with the whole pass"


def pass_is_killed(at: int) -> None:
    worker = Worker(-1)

    def compute(model, inputs):
        found = worker(model, inputs)
        if next(turns) == at:
            assert kill("regraft-sweep")
        time.sleep(0.001)
        return found

    turns = itertools.count()
    with cores(3), in_time(), pytest.raises(RunError, match=r"because one of its threads was ended by SystemExit"):
        passing(compute)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_thread_of_a_pass_raises_ends_the_pass_with_a_named_error(kind):
    pass_fails(5, kind)


def test_a_thread_of_a_pass_that_is_killed_ends_the_pass_with_a_named_error():
    pass_is_killed(3)


def test_a_pass_in_several_threads_gives_what_one_gives():
    with cores(1):
        one = passing(Worker(-1))
    with cores(3), in_time():
        three = passing(Worker(-1))
    np.testing.assert_allclose(one["out"].numpy(), three["out"].numpy(), rtol=1e-6)


@pytest.mark.slow
def test_100_of_100_dead_workers_end_in_a_named_error():
    ended = 0
    for at in range(5):
        for kind in KINDS:
            fails_itself(1 + 3 * at, kind)
            pass_fails(1 + 3 * at, kind)
            ended += 2
    for at in range(15):
        is_killed(at, SystemExit)
        pass_is_killed(at)
        ended += 2
    for at in range(10):
        vanishes(1 + at)
        ended += 1
    assert ended == 100
