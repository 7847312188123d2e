"""R6: a loss, gradient, batch or weight that is not finite is noticed in its step, named, and answered as the recipe says."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import pytest
import torch
from techniques.cases import CASES
from torch import nn
from toy import mlp

from regraft.core import Descent, Hook, Loss, Recipe, Technique, compile, fit
from regraft.core.checkpoint import Checkpointer, load
from regraft.core.descent import descents
from regraft.core.protocols import SourceWrapper
from regraft.core.run import Run
from regraft.core.train import advance, start
from regraft.errors import Conflict, RunError
from regraft.optim.build import DescentBuilder
from regraft.optim.optimizers import Adam
from regraft.optim.schedules import Cosine
from regraft.phases.rundir import EventLog
from regraft.techniques.alignment.grpo import GRPO
from regraft.techniques.control.uncertainty_weighting import UncertaintyWeighting
from regraft.techniques.generative.gan import GAN
from regraft.techniques.peft.lora import LoRA
from regraft.techniques.regularise.sam import SAM
from regraft.techniques.regularise.weight_average import WeightAverage
from regraft.techniques.regularise.weight_penalty import L2Penalty
from regraft.techniques.reliability.guard import Guard, Level
from regraft.testing import EachClass, Players, assert_sentence, network, toy_recipe

STEPS = 8
BAD = (float("nan"), float("inf"), -float("inf"))


def normalised(dropout: float = 0.2) -> nn.Module:
    """A network with running statistics and dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(8, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(16, 16),
            nn.ReLU(),
            nn.Linear(16, 4),
        )


@dataclass(frozen=True)
class Way:
    """A way of training that numbers may go bad in."""

    network: Callable[[], nn.Module] = network
    techniques: tuple[Technique, ...] = ()
    micro: int = 1
    precision: str = "fp32"
    max_norm: float | None = None

    def recipe(self, *techniques: Technique, steps: int = STEPS, bad: dict[int, float] | None = None) -> Recipe:
        recipe = toy_recipe(self.network(), steps=steps)
        update = DescentBuilder(
            optimizer=Adam(lr=0.01),
            schedule=Cosine(),
            micro=self.micro,
            precision=self.precision,
            max_norm=self.max_norm,
        )
        stage = replace(recipe.stages[0], update=update)
        if bad:
            stage = replace(stage, source=Poisoned(stage.source, bad))
        return compile(replace(recipe, stages=(stage,)), [*self.techniques, *techniques])


WAYS = {
    "plain": Way(),
    "clipped": Way(max_norm=1.0),
    "accumulated": Way(micro=4),
    "bf16": Way(precision="bf16"),
    "dropout": Way(network=lambda: network(0.2)),
    "batch normalisation": Way(network=normalised),
    "SAM": Way(techniques=(SAM(rho=0.1),)),
    "LoRA": Way(techniques=(LoRA(rank=2),)),
    "averaged": Way(techniques=(WeightAverage(decay=0.5),)),
    "GAN": Way(network=Players, techniques=(GAN(rounds=2),)),
}


class Poisoned(SourceWrapper):
    """Puts a value into one cell of the batches of some steps."""

    def __init__(self, base, bad: dict[int, float]) -> None:
        super().__init__(base)
        self.bad = bad

    def batches(self, model, start=0, /):
        for step, batch in enumerate(self.base.batches(model, start), start):
            if step in self.bad:
                batch = batch | {"x": batch["x"].clone()}
                batch["x"][step % len(batch["x"]), step % 8] = self.bad[step]
            yield batch


def weights(run: Run) -> list[torch.Tensor]:
    """Everything a step may change: weights, buffers, optimizer state."""
    found = [t.clone() for t in run.recipe.model.state_dict().values()]
    found += [t.clone() for t in run.stage.model.state_dict().values()]
    for descent in descents(run.step):
        for state in descent.state_dict()["state"].values():
            found += [torch.as_tensor(value).clone() for value in state.values()]
    return found


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# ---- injectors: each is armed for one step, and says what the sentence must name


@contextmanager
def in_loss(run: Run, step: int, value: float):
    original = Descent.gradients

    def gradients(self, loss_fn, batch):
        def poisoned(part):
            loss = loss_fn(part)
            return Loss(loss.value * value if run.clock.step == step else loss.value, loss.weight, loss.terms)

        return original(self, poisoned, batch)

    with patch.object(Descent, "gradients", gradients):
        yield r"the loss became (nan|-?inf) at step \d+ \(the outputs of all layers are finite\)"


@contextmanager
def in_one_gradient(run: Run, step: int, value: float):
    owned = [(name, p) for descent in descents(run.step) for name, p in descent.named.items()]
    name, parameter = owned[step * 3 % len(owned)]

    def poison(grad):
        grad = grad.clone()
        if run.clock.step == step:
            grad.view(-1)[-1] = value
        return grad

    handle = parameter.register_hook(poison)
    yield rf"gradient (of )?{name.removeprefix('model.')!r}"
    handle.remove()


@contextmanager
def in_batch(run: Run, step: int, value: float):
    yield r"'(x|real)' of the batch is not finite in row \d+"


@contextmanager
def in_weights(run: Run, step: int, value: float):
    named = run.stage.trainable()
    name = sorted(name for name, p in named.items() if p.ndim > 1)[step % 2]

    class Damage(Hook):
        def on_step(self, run, loss):
            if run.clock.step == step:
                with torch.no_grad():
                    named[name].view(-1)[step] = value

    if step == 0:
        with torch.no_grad():
            named[name].view(-1)[step] = value
    run.hooks = (*run.hooks, Damage())
    yield rf"weight {name.removeprefix('model.')!r} is not finite before it"


INJECTORS = {"loss": in_loss, "gradient": in_one_gradient, "data": in_batch, "weights": in_weights}
ALL = list(itertools.product(INJECTORS, WAYS, range(5)))  # 4 x 10 x 5 = 200


def inject(kind: str, way: Way, step: int, value: float) -> None:
    """One injection into one step of a run without Guard: it must end in that step, unmade, with the right name."""
    run = start(way.recipe(bad={step: value} if kind == "data" else None))
    seen = []

    class Look(Hook):
        def on_step(self, run, loss):
            seen.append((run.clock.step, weights(run)))

    run.hooks = (*run.hooks, Look())
    seen.append((0, weights(run)))
    with INJECTORS[kind](run, step, value) as expected, pytest.raises(RunError) as error:
        advance(run)
    text = str(error.value)
    assert_sentence(text)
    assert f"at step {step + 1}" in text, text
    assert re.search(expected, text), (expected, text)
    assert run.clock.step == step == seen[-1][0], "it was not noticed in its step"
    changed = (WAYS["GAN"], WAYS["batch normalisation"])  # the first player's update; running statistics of the batch
    if way not in changed and kind != "weights":
        assert same(seen[-1][1], weights(run)), "the step had changed something"


SAMPLE = [(kind, way, 3) for kind, way in itertools.product(INJECTORS, WAYS)]


@pytest.mark.parametrize(("kind", "way", "step"), SAMPLE, ids=[f"{kind}-{way}" for kind, way, _ in SAMPLE])
def test_a_number_that_is_not_finite_ends_the_run_in_its_step_with_its_place(kind, way, step):
    inject(kind, WAYS[way], step, BAD[step % 3])


@pytest.mark.slow
def test_200_of_200_injections_are_noticed_in_their_step():
    noticed = 0
    for number, (kind, way, step) in enumerate(ALL):
        inject(kind, WAYS[way], step, BAD[number % 3])
        noticed += 1
    assert noticed == len(ALL) == 200


# ---- skip


def without_step(way: Way, step: int, steps: int = STEPS) -> Run:
    """The oracle: a run without Guard and without the bad batch, in which one step is simply not made."""
    run = start(way.recipe(steps=steps))
    if step:
        advance(run, step)
    run.clock = replace(run.clock, step=step + 1)
    return advance(run)


AVERAGED = {"averaged"}  # its average counts a step that was not made once more


@pytest.mark.parametrize("way", [name for name in WAYS if name not in AVERAGED])
def test_a_skipped_step_leaves_every_bit_as_if_it_had_not_been_drawn(way):
    for step in (0, 3, STEPS - 1):
        run = advance(start(WAYS[way].recipe(Guard(), bad={step: BAD[step % 3]})))
        assert run.clock.step == STEPS
        assert same(weights(run), weights(without_step(WAYS[way], step))), step
        assert [record["step"] for record in run.history] == [s for s in range(1, STEPS + 1) if s != step + 1]


def test_what_was_skipped_is_said_and_logged_and_counted(tmp_path):
    log = EventLog(tmp_path / "events.jsonl", candidate="toy")
    report = fit(WAYS["plain"].recipe(Guard(), bad={2: float("nan"), 5: float("inf")}), log=log)
    assert len(report.notes) == 3
    assert report.notes[0].startswith(
        "stage 'first': the loss became nan at step 3 ('x' of the batch is not finite in row 2 (ex"
    )
    assert report.notes[0].endswith("the step was skipped")
    assert report.notes[2] == "stage 'first': 2 of 8 steps were not made (Guard)"
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "note" in line] == [3, 6, 8]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 4, 5, 7, 8]


def test_the_skips_are_bounded():
    bad = dict.fromkeys(range(2, 6), float("nan"))
    assert fit(WAYS["plain"].recipe(Guard(most=4), bad=bad)).steps == {"first": STEPS}
    with pytest.raises(
        RunError, match=r"at step 5 .*more than 2 steps could not be made .*\(Guard\.most\), so the run ends"
    ):
        fit(WAYS["plain"].recipe(Guard(most=2), bad=bad))
    apart = dict.fromkeys((1, 4, 7), float("nan"))
    assert fit(WAYS["plain"].recipe(Guard(most=1, every=2), bad=apart)).steps == {"first": STEPS}
    with pytest.raises(RunError, match="with fewer than 3 good ones in a row"):
        fit(WAYS["plain"].recipe(Guard(most=1, every=3), bad=apart))


def test_skipping_is_refused_where_the_weights_have_gone_bad():
    run = start(WAYS["plain"].recipe(Guard()))
    with in_weights(run, 3, float("nan")) as expected, pytest.raises(RunError, match=expected):
        advance(run)


# ---- roll back


def rolled_back(way: Way, step: int, every: int) -> Run:
    """The oracle: a run that stands still from the copy to the step after the bad one."""
    run = start(way.recipe())
    good = step // every * every
    if good:
        advance(run, good)
    run.clock = replace(run.clock, step=step + 1)
    return advance(run)


@pytest.mark.parametrize("way", WAYS)
def test_rolling_back_lands_on_the_last_copy_and_goes_on_after_the_bad_step(way):
    for step in (0, 2, 5, STEPS - 1):
        run = advance(start(WAYS[way].recipe(Guard(on_trouble="roll_back", every=3), bad={step: BAD[step % 3]})))
        oracle = rolled_back(WAYS[way], step, 3)
        if way != "averaged":
            assert same(weights(run), weights(oracle)), step
        assert run.clock.step == STEPS
        assert f"weights and optimizer are again those after step {step // 3 * 3}" in run.notes[0]


def test_a_step_after_which_a_weight_is_not_finite_is_rolled_back_before_anybody_sees_it(tmp_path):
    class Overflow(Hook):  # stands for an update that is too large: it acts before all others
        def on_step(self, run, loss):
            if run.clock.step == 5:
                with torch.no_grad():
                    next(run.stage.model.parameters())[0, 0] = float("inf")

    def run_of(*techniques):
        recipe = WAYS["averaged"].recipe(*techniques)
        (stage,) = recipe.stages
        return start(replace(recipe, stages=(replace(stage, hooks=(Overflow(), *stage.hooks)),)))

    run = advance(run_of(Guard(on_trouble="roll_back", every=2)))
    assert all(bool(p.isfinite().all()) for p in run.stage.model.parameters())
    assert run.notes[0].endswith(
        "a weight is not finite after step 5; weights and optimizer are again those after step 4"
    )
    broken = run_of()
    broken.hooks = (*broken.hooks, Checkpointer(tmp_path, every=1))
    with pytest.raises(RunError, match=r"weight '0\.weight' is not finite after step 5"):
        advance(broken)


def test_the_last_step_is_looked_at_as_well():
    class Overflow(Hook):
        def on_step(self, run, loss):
            if run.clock.step == STEPS:
                with torch.no_grad():
                    next(run.stage.model.parameters())[0, 0] = float("inf")

    with pytest.raises(RunError, match=r"weight '0\.weight' is not finite after step 8"):
        fit(WAYS["plain"].recipe(), hooks=[Overflow()])


# ---- resume


@pytest.mark.parametrize("way", ["batch normalisation", "averaged", "GAN"])
@pytest.mark.parametrize("on_trouble", ["skip", "roll_back"])
def test_what_was_decided_survives_a_resume_to_the_same_bits(tmp_path, way, on_trouble):
    bad = {2: float("nan"), 5: float("inf")}

    def recipe():
        return WAYS[way].recipe(Guard(on_trouble=on_trouble, every=2, most=3, spike=3.0), bad=bad)

    whole = start(recipe(), hooks=[Checkpointer(tmp_path / "whole", every=1, keep=100)])
    advance(whole)
    whole.hooks[-1].writer.join()
    folders = sorted((tmp_path / "whole").glob("step-*"))
    assert len(folders) == STEPS - 1
    for folder in folders:
        again = recipe()
        report = fit(again, hooks=[Checkpointer(tmp_path / "again", every=100)], resume=load(folder))
        found = list(again.model.state_dict().values())
        expected = list(whole.recipe.model.state_dict().values())
        assert same(found, expected), folder.name
        assert report.notes[-1] == "stage 'first': 2 of 8 steps were not made (Guard)"


# ---- spikes and false alarms


@pytest.mark.parametrize("on_trouble", ["stop", "skip", "roll_back"])
def test_a_spike_is_noticed_in_its_step(on_trouble):
    recipe = Way(network=mlp).recipe(Guard(on_trouble=on_trouble, spike=3.0), steps=60, bad={40: 3e4})
    if on_trouble == "stop":
        with pytest.raises(RunError, match=r"the loss jumped to \S+ from a running mean of \S+ at step 41;"):
            fit(recipe)
        return
    report = fit(recipe)
    assert "the loss jumped to" in report.notes[0]
    assert "at step 41" in report.notes[0]
    assert len(report.notes) == 2


def test_the_level_is_that_of_the_formula():
    level, seen = Level(3.0), []
    for value in (4.0, 2.0, 3.0, 1.0):
        level.take(value)
        seen.append(value)
    assert level.mean == pytest.approx(sum(seen) / 4)  # a plain mean as long as it remembers fewer than 50
    for _ in range(16):
        assert not level.is_spike(1e9), "within the warm-up"
        level.take(1.0)
    assert level.start == pytest.approx((10 + 16) / 20)
    assert level.is_spike(1e9)
    assert not level.is_spike(level.start)


def clean(technique: Technique | None, seed: int, steps: int) -> int:
    """Steps made with the guard on its most watchful setting; a false alarm raises."""
    case = None if technique is None else CASES[type(technique).__name__]
    precision = "bf16" if seed % 2 else "fp32"
    if case is None:
        recipe = toy_recipe(network(), steps=steps, precision=precision)
    else:
        recipe = toy_recipe(
            case.network(0.1), steps=steps, precision=precision, shows=case.shows, objective=case.objective
        )
    spike = None if isinstance(technique, GRPO | UncertaintyWeighting) else 3.0  # their losses have no level
    compiled = compile(recipe, [*([technique] if technique else []), Guard(on_trouble="stop", spike=spike)])
    return sum(fit(compiled, seed=seed).steps.values())


def test_a_loss_without_a_level_has_no_spikes():
    with pytest.raises(Conflict, match=r"Guard\.spike: the loss of stage 'first' is of rollouts"):
        compile(toy_recipe(network()), [GRPO(), Guard(spike=3.0)])
    recipe = toy_recipe(network(), objective=EachClass())
    with pytest.raises(
        Conflict, match=r"the loss of stage 'first' is divided by variances that are learned.*; leave spike out"
    ):
        compile(recipe, [L2Penalty(), UncertaintyWeighting(), Guard(spike=3.0)])
    compile(recipe, [UncertaintyWeighting(), Guard(gradient_spike=10.0)])


def test_clean_steps_raise_no_alarm():
    assert clean(None, 0, 150) + clean(SAM(), 1, 100) == 500


@pytest.mark.slow
def test_10000_clean_steps_of_all_techniques_raise_no_alarm():
    chosen = [case.technique for name, case in CASES.items() if name not in ("Guard", "Compile")]
    made = sum(clean(technique, seed, 140) for seed in (0, 1) for technique in chosen)
    assert made >= 10_000
