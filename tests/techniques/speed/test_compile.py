"""The switch is a measurement, its decision survives a resume, and the model is its own again when the stage ends."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import mlp, recipe, stage

from regraft.core import compile, fit
from regraft.core.train import advance, start
from regraft.errors import ConfigError, Conflict
from regraft.layers.stand_in import has_stand_in, own_forward, replace_forward, restore_forward
from regraft.techniques.generative.gan import GAN
from regraft.techniques.speed import compile as subject
from regraft.techniques.speed.compile import Compile, Decision, decide, too_short
from regraft.testing import Players

SECONDS = st.floats(1e-5, 10)


@given(st.integers(0, 10**6), SECONDS, SECONDS, st.floats(0, 1e4))
def test_it_compiles_exactly_where_the_whole_stage_ends_sooner(steps, eager_s, compiled_s, compile_s):
    decision = decide(steps=steps, eager_s=eager_s, compiled_s=compiled_s, compile_s=compile_s)
    gain = steps * (eager_s - compiled_s) - compile_s
    if abs(gain) > 1e-6 * (steps * max(eager_s, compiled_s) + compile_s):  # else rounding decides
        assert decision.compiled == (gain > 0)


def test_the_sentence_has_the_numbers_that_decided():
    yes = decide(steps=1000, eager_s=0.05, compiled_s=0.03, compile_s=12.0)
    assert yes.sentence == (
        "Compile: compiled; 30.00 ms a step instead of 50.00 ms, 12.0 s to compile; 1,000 steps repay it (+20.0 s)"
    )
    no = decide(steps=100, eager_s=0.05, compiled_s=0.06, compile_s=12.0)
    assert "not compiled" in no.sentence
    assert "100 steps do not repay it (-1.0 s)" in no.sentence


def test_a_short_run_is_not_even_tried(monkeypatch):
    monkeypatch.setattr(subject, "compiled_forward", lambda model: pytest.fail("compiled a run of 3 steps"))
    report = fit(compile(recipe(stage(steps=3)), [Compile()]))
    assert report.notes[0].startswith("Compile: not compiled; 3 steps of ")
    assert too_short(steps=10**6, eager_s=0.1) is None


@pytest.fixture
def counted(monkeypatch):
    """A compiler that takes no time and counts the calls of what it made."""
    calls = []

    def made(model):
        def call(module, *args, **kwargs):
            if torch.is_grad_enabled():
                calls.append(len(calls))
            return own_forward(module, *args, **kwargs)

        return call

    monkeypatch.setattr(subject, "compiled_forward", made)
    return calls


def test_what_is_measured_leaves_no_trace_in_the_weights(counted, monkeypatch):
    monkeypatch.setattr(subject, "FEWEST_SECONDS", 0.0)
    plain, tried = stage(steps=5), stage(steps=5)
    fit(recipe(plain))
    report = fit(compile(recipe(tried), [Compile()]))
    assert len(counted) >= 3 * (subject.ROUNDS + 1)
    assert "Compile: " in report.notes[0]
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), tried.model.parameters(), strict=True))


def test_a_resumed_run_takes_the_decision_of_the_checkpoint(counted, monkeypatch):
    monkeypatch.setattr(subject, "measured", lambda run: Decision(compiled=True, sentence="Compile: compiled"))
    first = start(compile(recipe(stage(steps=6)), [Compile()]))
    state = copy.deepcopy(advance(first, 2).state_dict())
    monkeypatch.setattr(subject, "measured", lambda run: pytest.fail("measured again"))
    counted.clear()
    fit(compile(recipe(stage(steps=6)), [Compile()]), resume=state)
    assert len(counted) == 4


def test_the_model_is_its_own_when_the_stage_ends(counted):
    chosen = stage(steps=2)
    names = list(chosen.model.state_dict())
    run = advance(start(compile(recipe(chosen), [Compile(when="always")])), 1)
    assert has_stand_in(chosen.model)
    assert list(chosen.model.state_dict()) == names
    advance(run)
    assert not has_stand_in(chosen.model)
    assert len(counted) == 2


def test_copies_and_pickles_of_a_model_compute_with_their_own_weights():
    model = mlp()
    replace_forward(model, lambda module, x: own_forward(module, x) + 1)
    x = torch.ones(2, 8)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            other[0].weight.zero_()
        assert torch.equal(other(x), own_forward(other, x))
        assert not torch.equal(other(x), model(x))
    restore_forward(model)
    assert torch.equal(model(x), mlp()(x))


def test_without_a_compiler_it_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler, and '/nowhere/c\\+\\+' was not found"):
        compile(recipe(stage()), [Compile()])


def test_a_step_that_calls_parts_of_the_model_is_refused():
    with pytest.raises(Conflict, match="Compile: the step of stage 'toy' calls parts of the Players"):
        compile(recipe(stage(model=Players())), [GAN(), Compile()])


@pytest.mark.slow
def test_a_really_compiled_stage_trains_the_same_weights_up_to_rounding():
    plain, fast = stage(steps=20), stage(steps=20)
    fit(recipe(plain))
    report = fit(compile(recipe(fast), [Compile(when="always")]))
    assert report.notes == ("Compile: compiled, as asked for",)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    for one, two in zip(plain.model.parameters(), fast.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)
