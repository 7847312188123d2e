"""R5: where memory does not suffice for a batch, its step is made in smaller slices, and the run is that of those slices."""

from __future__ import annotations

import itertools
import re
import resource
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from faults.lab import forked
from torch import Tensor, nn

from regraft.core import Descent, Hook, Loss, Recipe, Stage, Technique, compile, fit
from regraft.core.checkpoint import Checkpointer, load
from regraft.core.descent import descents
from regraft.core.micro_batch import MESSAGES, out_of_memory, smaller
from regraft.core.run import Run
from regraft.core.train import advance, start
from regraft.core.values import size
from regraft.errors import RunError
from regraft.losses.supervised import cross_entropy
from regraft.optim.build import DescentBuilder
from regraft.optim.optimizers import SGD, Adam
from regraft.optim.schedules import Cosine
from regraft.techniques.distil.distillation import Distillation
from regraft.techniques.generative.gan import GAN
from regraft.techniques.meta.maml import MAML
from regraft.techniques.regularise.sam import SAM
from regraft.techniques.reliability.guard import Guard
from regraft.testing import Players, Rows, assert_sentence, network, toy_recipe

SHORT = "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."


@dataclass(frozen=True)
class Way:
    """A way of training that memory may not suffice for."""

    network: Callable[[], nn.Module] = lambda: network(0.2)
    techniques: tuple[Technique, ...] = ()
    precision: str = "fp32"

    def recipe(self, *, micro: int = 1, steps: int = 6, optimizer=None) -> Recipe:
        recipe = toy_recipe(self.network(), steps=steps)
        update = DescentBuilder(
            optimizer=optimizer or Adam(lr=0.01), schedule=Cosine(), micro=micro, max_norm=1.0, precision=self.precision
        )
        return compile(replace(recipe, stages=(replace(recipe.stages[0], update=update),)), self.techniques)


WAYS = {
    "dropout": Way(),
    "bf16": Way(precision="bf16"),
    "SAM": Way(techniques=(SAM(rho=0.1),)),
    "GAN": Way(network=lambda: Players(0.2), techniques=(GAN(rounds=2),)),
    "MAML": Way(techniques=(MAML(ways=3, shots=2, queries=2, tasks=4),)),
    "distillation": Way(techniques=(Distillation(teacher="teacher"),)),
    "Guard": Way(techniques=(Guard(on_trouble="roll_back", every=2),)),
}


@dataclass
class Memory:
    """Fails a forward pass that is asked for too much, and notes the examples of those whose gradients count."""

    most: float = float("inf")  # examples that a slice may hold
    fails: set[tuple[int, int]] = field(default_factory=set)  # (step, number of the forward pass in it), once each
    where: str = "forward"
    error: Exception = field(default_factory=lambda: RuntimeError(SHORT))
    failed: int = 0
    calls: int = 0
    drawn: list[tuple[int, list[int]]] = field(default_factory=list)

    @contextmanager
    def of(self, run: Run):
        original = Descent._accumulated

        def accumulated(update, loss_fn, batch):
            seen: list[int] = []

            def watched(part):
                step, self.calls = run.clock.step, self.calls + 1
                due = (step, self.calls) in self.fails
                self.fails.discard((step, self.calls))
                if size(part) > self.most or (due and self.where == "forward"):
                    self._fail()
                loss = loss_fn(part)
                seen.extend(part["id"].tolist() if "id" in part else [])
                if due:
                    loss.value.register_hook(lambda grad: self._fail())
                return loss

            loss = original(update, watched, batch)
            self.drawn.append((run.clock.step, seen))
            return loss

        class Again(Hook):
            def on_step(_, run, loss):
                self.calls = 0

        run.hooks = (*run.hooks, Again())
        with patch.object(Descent, "_accumulated", accumulated):
            yield run

    def _fail(self):
        self.failed += 1
        raise self.error


def state(run: Run) -> list[Tensor]:
    """Weights and optimizer state."""
    found = [t.clone() for t in run.recipe.model.state_dict().values()]
    for descent in descents(run.step):
        for values in descent.state_dict()["state"].values():
            found += [torch.as_tensor(value).clone() for value in values.values()]
    return found


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def furthest(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest relative distance of two tensors."""
    return max(float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in zip(one, other, strict=True) if a.ndim)


def switched(way: Way, step: int, micro: int, **options) -> Run:
    """The oracle: a run that nothing fails in, cut into slices by hand from a step on."""
    run = start(way.recipe(**options))
    if step:
        advance(run, step)
    for descent in descents(run.step):
        descent.micro = micro
    return advance(run)


# ---- the trajectory


@pytest.mark.parametrize("way", WAYS)
def test_a_run_whose_batches_do_not_fit_is_that_of_the_slices_that_do_bit_for_bit(way):
    most = 1 if way == "MAML" else 8
    memory = Memory(most=most)
    with memory.of(start(WAYS[way].recipe())) as run:
        advance(run)
    fixed = advance(start(WAYS[way].recipe(micro=4)))
    assert memory.failed == 2 * len(descents(run.step)), "the size found was not kept"
    assert {descent.micro for descent in descents(run.step)} == {4}
    assert same(state(run), state(fixed))


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("call", [1, 2])
def test_a_failure_in_any_slice_of_any_pass_is_repeated_with_the_same_random_numbers(where, call):
    way = WAYS["SAM"] if call == 2 else WAYS["dropout"]
    for step in (0, 2, 5):
        memory = Memory(fails={(step, call)}, where=where)
        with memory.of(start(way.recipe())) as run:
            advance(run)
        assert memory.failed == 1
        if call == 1:
            assert same(state(run), state(switched(way, step, 2)))
        else:  # the climb was made of the whole batch, the descent of its halves
            assert furthest(state(run), state(switched(way, step, 2))) < 1e-5


def test_a_failure_in_the_second_slice_drops_the_gradients_of_the_first():
    memory = Memory(fails={(3, 2)})
    with memory.of(start(WAYS["dropout"].recipe(micro=2))) as run:
        advance(run, 3)
        before = state(run)
        assert not memory.failed
        advance(run)
    assert memory.failed == 1
    oracle = start(WAYS["dropout"].recipe(micro=2))
    advance(oracle, 3)
    assert same(before, state(oracle))
    for descent in descents(oracle.step):
        descent.micro = 4
    assert same(state(run), state(advance(oracle)))


def injected(step: int, *, steps: int) -> tuple[float, bool]:
    """One failure at a step: distance to the run in fixed slices, and whether it is bit for bit the one that was switched."""
    way, optimizer = Way(network=network), SGD(lr=0.05)
    memory = Memory(fails={(step, 1)}, where=("forward", "backward")[step % 2])
    with memory.of(start(way.recipe(steps=steps, optimizer=optimizer))) as run:
        advance(run)
    assert memory.failed == 1
    ids = [drawn for _, drawn in memory.drawn]
    source = run.stage.source.batches(run.stage.model)
    assert ids == [next(source)["id"].tolist() for _ in range(steps)], "an example was left out or came twice"
    fixed = advance(start(way.recipe(steps=steps, micro=2, optimizer=optimizer)))
    exact = same(state(run), state(switched(way, step, 2, steps=steps, optimizer=optimizer)))
    return furthest(state(run), state(fixed)), exact


@pytest.mark.parametrize("step", [0, 7, 19])
def test_the_trajectory_is_that_of_fixed_slices_and_no_example_is_left_out_or_repeated(step):
    distance, exact = injected(step, steps=20)
    assert exact
    assert distance <= 1e-6


@pytest.mark.slow
def test_50_of_50_failures_keep_the_trajectory():
    found = [injected(step, steps=50) for step in range(50)]
    assert len(found) == 50
    assert all(exact for _, exact in found)
    assert max(distance for distance, _ in found) <= 1e-6


# ---- what is remembered and said


def test_the_size_found_is_said_once_logged_and_survives_a_resume(tmp_path):
    class Log:
        def __init__(self):
            self.records = []

        def write(self, records):
            self.records += records

        def rewind(self, stage, step):
            pass

    log, memory = Log(), Memory(most=8)
    with memory.of(start(WAYS["dropout"].recipe(), hooks=[Checkpointer(tmp_path, every=1, keep=9)], log=log)) as run:
        advance(run)
        run.hooks[-2].writer.join()
    assert run.notes == [
        "stage 'first', step 1: memory did not suffice for 32 examples at once, so batches are cut into 2 slices from here on; "
        "a step is still one of the whole batch",
        "stage 'first', step 1: memory did not suffice for 16 examples at once, so batches are cut into 4 slices from here on; "
        "a step is still one of the whole batch",
    ]
    assert [r["step"] for r in log.records if "note" in r] == [1, 1]
    for folder in sorted(tmp_path.glob("step-*")):
        again = WAYS["dropout"].recipe()
        with patch.object(Descent, "_cut_smaller", side_effect=AssertionError("it was found already")):
            report = fit(again, hooks=[Hook()], resume={**load(folder), "hooks": [{}]})
        assert same(list(again.model.state_dict().values()), list(run.recipe.model.state_dict().values())), folder.name
        assert report.notes == ("batches are cut into 4 slices, as memory had called for before",)


def test_the_next_stage_begins_with_the_size_found():
    recipe = toy_recipe(network(), steps=3)
    first = start(recipe)
    with Memory(most=8).of(first):
        advance(first)
    second = start(recipe, 1, previous=first)
    assert descents(second.step)[0].micro == 4


# ---- where it ends


def test_what_does_not_fit_by_itself_ends_the_run_in_a_sentence_with_the_weights_untouched():
    run = start(WAYS["dropout"].recipe())
    with Memory(most=0).of(run), pytest.raises(RunError) as error:
        advance(run)
    assert_sentence(str(error.value))
    assert str(error.value).startswith(
        "stage 'first', step 1: memory does not suffice for a single example ([enforce fail"
    )
    assert same(list(run.recipe.model.state_dict().values()), list(network(0.2).state_dict().values()))
    assert [descent.micro for descent in descents(run.step)] == [32]


def contrastive(model, batch, clock):
    return Loss(model(batch["x"]).var(0).mean(), size(batch))


class Wrapped:
    """An objective around another."""

    def __init__(self, base):
        self.base = base

    def __call__(self, model, batch, clock):
        return self.base(model, batch, clock)


@pytest.mark.parametrize("kind", ["batch normalisation", "objective", "wrapped objective"])
def test_a_batch_that_must_not_be_cut_is_refused_in_a_sentence(kind, monkeypatch):
    monkeypatch.setattr(contrastive, "splittable", False, raising=False)
    recipe = toy_recipe(network(), steps=3)
    stage = recipe.stages[0]
    if kind == "batch normalisation":
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
        stage, reason = replace(stage, model=model), "the BatchNorm1d '1' takes its statistics over the whole batch"
    else:
        stage = replace(stage, objective=contrastive if kind == "objective" else Wrapped(contrastive))
        reason = "the objective contrastive compares its examples with each other"
    run = start(replace(recipe, model=stage.model, stages=(stage,)))
    with Memory(most=8).of(run), pytest.raises(RunError, match=reason) as error:
        advance(run)
    assert_sentence(str(error.value))
    assert "lower train.batch_size, or set train.micro" in str(error.value)


def test_batch_normalisation_that_stands_still_may_be_cut():
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
    model.steady = True
    recipe = toy_recipe(model, steps=2)
    run = start(replace(recipe, stages=recipe.stages[:1]))
    with Memory(most=16).of(run):
        advance(run)
    assert descents(run.step)[0].micro == 2


def test_only_errors_of_memory_are_answered():
    run = start(WAYS["dropout"].recipe())
    with Memory(most=8, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied")).of(run):  # noqa: SIM117
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            advance(run)
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError(SHORT),
    ):
        assert out_of_memory(error)
        run = start(WAYS["dropout"].recipe(steps=1))
        with Memory(most=16, error=error).of(run):
            advance(run)
        assert descents(run.step)[0].micro == 2
    assert all(out_of_memory(RuntimeError(message.upper())) for message in MESSAGES)
    assert not out_of_memory(ValueError("out of memory"))


def test_an_optimizer_without_memory_for_its_state_ends_the_run_in_a_sentence():
    run = start(WAYS["dropout"].recipe())
    with patch.object(torch.optim.Adam, "step", side_effect=RuntimeError(SHORT)), pytest.raises(RunError) as error:
        advance(run)
    assert "memory does not suffice for step 1 beside its gradients" in str(error.value)


def test_a_slice_gets_half_as_many_examples_until_it_has_one():
    for rows in (1, 2, 5, 31, 32, 33):
        micro, sizes = 1, [rows]
        while (found := smaller(rows, micro)) is not None:
            micro = found
            sizes.append(-(-rows // micro))
        assert sizes[-1] == 1
        assert all(b <= a / 2 + 0.5 and b >= 1 for a, b in itertools.pairwise(sizes)), sizes


# ---- memory that really runs out


def wide(*, micro: int, steps: int = 2) -> Run:
    """A batch whose activations take hundreds of megabytes, and each half of it half of them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(8, 2048), nn.Tanh(), *[m for _ in range(6) for m in (nn.Dropout(0.1), nn.Tanh())]
        )
        model.append(nn.Linear(2048, 4))
        x, y = torch.randn(2048, 8), torch.randint(4, (2048,))
    from regraft.data.sources import Examples

    source = Examples(Rows(x), y, batch_size=2048, seed=0)
    stage = Stage(
        name="wide", model=model, source=source, objective=cross_entropy,
        update=DescentBuilder(optimizer=SGD(lr=0.1), micro=micro), steps=steps,
    )  # fmt: skip
    return start(compile(Recipe(model=model, stages=(stage,)), []))


def address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def starved() -> dict:
    """A run in a process that may take 125 MB more than it has: too little for the batch, enough for slices of it."""
    torch.set_num_threads(1)
    run = wide(micro=1)
    limit = address_space() + 125_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    advance(run)
    weights = [value.sum().item() for value in run.stage.model.state_dict().values()]
    return {"micro": descents(run.step)[0].micro, "notes": run.notes, "weights": weights}


def test_a_process_that_may_not_take_more_memory_makes_its_steps_in_slices():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = forked(starved).result()
        assert found["micro"] > 1
        cuts = [
            re.search(r"step (\d+): memory did not suffice .* cut into (\d+) slices", note) for note in found["notes"]
        ]
        fixed = wide(micro=1)
        for cut in cuts:
            assert cut is not None, found["notes"]
            advance(fixed, int(cut[1]) - 1 - fixed.clock.step)
            descents(fixed.step)[0].micro = int(cut[2])
        advance(fixed)
    finally:
        torch.set_num_threads(threads)
    expected = [value.sum().item() for value in fixed.stage.model.state_dict().values()]
    assert found["weights"] == expected
    assert np.isfinite(expected).all()
