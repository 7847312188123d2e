"""Batches come in the same order with the same bits; errors and endings are the loop's."""

from __future__ import annotations

import threading
from itertools import islice

import pytest
import torch
from toy import Tensors, blobs, mlp, recipe, stage

from regraft.core import Source, compile, fit
from regraft.core.checkpoint import Checkpointer, load
from regraft.errors import Conflict
from regraft.techniques.alignment.grpo import GRPO
from regraft.techniques.speed.prefetch import Prefetch, Prefetched, pinned, to_device


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "regraft-prefetch"]


class Counting(Tensors):
    """Notes every batch it makes, and fails at one of them."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__(blobs())
        self.made, self.fails_at = 0, fails_at

    def batches(self, model, start=0):
        for step, batch in enumerate(super().batches(model, start), start=start):
            if step == self.fails_at:
                raise OSError("row 7 cannot be read")
            self.made += 1
            yield batch


class Short(Source):
    """Three batches and no more."""

    inputs = {"x": "id"}  # noqa: RUF012

    def batches(self, model, start=0):
        return iter([{"x": torch.full((2,), float(n))} for n in range(start, 3)])


@pytest.mark.parametrize(("ahead", "start"), [(1, 0), (2, 5), (7, 11)])
def test_batches_are_those_of_the_source_from_any_step(ahead, start):
    plain = list(islice(Tensors(blobs()).batches(mlp(), start), 20))
    early = list(islice(Prefetched(Tensors(blobs()), batches=ahead).batches(mlp(), start), 20))
    assert all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(plain, early, strict=True)
    )


def test_no_more_than_the_asked_for_batches_are_made_ahead():
    source = Counting()
    iterator = Prefetched(source, batches=2).batches(mlp())
    next(iterator)
    for _ in range(100):
        if source.made == 4:
            break
        threading.Event().wait(0.01)
    threading.Event().wait(0.1)
    assert source.made == 4  # one was taken, two are ready, and one waits for room
    iterator.close()


def test_an_error_surfaces_at_its_own_batch():
    iterator = Prefetched(Counting(fails_at=3), batches=2).batches(mlp())
    assert len(list(islice(iterator, 3))) == 3
    with pytest.raises(OSError, match="row 7 cannot be read"):
        next(iterator)
    assert threads() == []


def test_the_thread_ends_when_the_iterator_is_closed_or_forgotten():
    iterator = Prefetched(Counting(), batches=1).batches(mlp())
    next(iterator)
    assert len(threads()) == 1
    iterator.close()
    assert threads() == []
    iterator = Prefetched(Counting(), batches=1).batches(mlp())
    next(iterator)
    del iterator
    assert threads() == []


def test_a_source_that_ends_ends():
    assert [float(batch["x"][0]) for batch in Prefetched(Short(), batches=2).batches(mlp(), 1)] == [1.0, 2.0]
    assert threads() == []


def test_training_and_resuming_are_bit_identical_to_training_without(tmp_path):
    plain, early, again = (stage(steps=12, source=Counting()) for _ in range(3))
    fit(recipe(plain))
    fit(compile(recipe(early), [Prefetch(batches=3)]), hooks=[Checkpointer(tmp_path / "a", every=5)])
    compiled = compile(recipe(again), [Prefetch(batches=3)])
    fit(compiled, hooks=[Checkpointer(tmp_path / "b", every=5)], resume=load(tmp_path / "a" / "step-00000005"))
    for one, two, three in zip(*(s.model.parameters() for s in (plain, early, again)), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
    assert threads() == []


def test_rollouts_are_refused_because_they_belong_to_the_weights_of_their_step():
    with pytest.raises(Conflict, match="Prefetch: what stage 'toy' draws depends on more than the step's number"):
        compile(recipe(stage()), [Prefetch(), GRPO()])


@pytest.mark.gpu
def test_on_a_gpu_batches_arrive_there_through_pinned_memory():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    batch = next(Tensors(blobs()).batches(mlp()))
    assert all(value.is_pinned() for value in pinned(batch).values())
    arrived = next(Prefetched(Tensors(blobs()), batches=2).batches(mlp().cuda()))
    assert all(value.device.type == "cuda" and torch.equal(value.cpu(), batch[key]) for key, value in arrived.items())
    assert to_device(batch, torch.device("cuda"))["x"].is_cuda
