"""What Guard keeps to undo a step with; what it does in a run is in tests/faults/test_bad_numbers.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from regraft.core import compile, explain
from regraft.core.finite import Trouble
from regraft.core.train import start
from regraft.errors import ConfigError
from regraft.techniques.regularise.sam import SAM
from regraft.techniques.reliability.guard import RATE, WARM_UP, Buffers, Guard, Level, cloned
from regraft.testing import network, toy_recipe


class Counted(nn.Module):
    """Buffers of three kinds: written in place, put in place of the old one, and never changed."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("last", torch.zeros(3))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, x):
        self.seen += 1
        self.last = x[0, :3].detach().clone()
        return x


def test_buffers_come_back_however_a_forward_pass_has_changed_them():
    model = nn.Sequential(nn.BatchNorm1d(8), Counted(), nn.BatchNorm1d(8))
    buffers = Buffers(list(model.modules()))
    for _ in range(3):
        buffers.keep()
        before = cloned(dict(model.named_buffers()))
        model(torch.full((4, 8), float("nan")))
        assert not torch.equal(model[1].seen, before["1.seen"])
        assert model[0].running_mean.isnan().any()
        buffers.restore()
        assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
        buffers.keep()
        model(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))


def test_a_buffer_that_nothing_writes_to_is_copied_once():
    model = Counted()
    buffers = Buffers([model])
    buffers.keep()
    first = [kept[2] for kept in buffers.kept]
    model(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
    buffers.keep()
    assert [one is kept[2] for one, kept in zip(first, buffers.kept, strict=True)] == [False, False, True]


def test_a_copy_shares_no_tensor_with_what_it_is_of():
    state = {"a": torch.zeros(2), "b": [{"c": torch.ones(1)}, 3, "x"], "d": None}
    copy = cloned(state)
    state["a"] += 1
    state["b"][0]["c"] += 1
    assert copy["a"].tolist() == [0.0, 0.0]
    assert copy["b"] == [{"c": torch.ones(1)}, 3, "x"]


def test_the_level_follows_a_loss_that_changes_slowly():
    level = Level(3.0)
    for step in range(2000):
        value = 1.0 + step / 100
        assert not level.is_spike(value)
        level.take(value)
    assert level.mean == pytest.approx(1.0 + 1999 / 100 - 0.01 * (1 - RATE) / RATE, rel=1e-6)  # a lag of 49 steps
    again = Level(3.0)
    again.load_state_dict(level.state_dict())
    assert again.state_dict() == level.state_dict()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_noise_around_zero_and_hard_batches_late_in_training_are_no_spikes(scale):
    random = torch.Generator().manual_seed(0)
    level = Level(3.0)
    for value in torch.randn(5000, generator=random).mul(scale).tolist():
        assert not level.is_spike(value)
        level.take(value)
    assert level.is_spike(20 * scale)
    level = Level(3.0)
    for step in range(500):
        level.take(scale * 0.99**step)
    assert not level.is_spike(scale * 0.5), "below where the stage began"
    assert level.is_spike(scale * 2)


def test_nothing_is_a_spike_before_the_warm_up_is_over():
    level = Level(3.0)
    for _ in range(WARM_UP):
        assert not level.is_spike(1e30)
        level.take(1.0)
    assert level.is_spike(1e30)


def test_outside_of_a_run_a_step_is_not_guarded():
    run = start(compile(toy_recipe(network()), [Guard()]))
    batch = next(run.stage.source.batches(run.stage.model))
    with pytest.raises(Trouble, match="the loss became nan, so the step was not made"):
        run.step(batch | {"x": batch["x"] * float("nan")}, run.clock)


def test_turned_off_it_touches_nothing():
    recipe = toy_recipe(network())
    assert all(a is b for a, b in zip(compile(recipe, [Guard(on_trouble="stop")]).stages, recipe.stages, strict=True))


def test_it_stands_around_whatever_a_step_is_made_of():
    for order in ([SAM(), Guard(spike=3.0)], [Guard(spike=3.0), SAM()]):
        text = explain(compile(toy_recipe(network()), order))
        assert "Levelling(Climbing(Descent(" in text
        assert "GuardedSteps(OneUpdate)" in text


@pytest.mark.parametrize("bad", [{"spike": 1.0}, {"most": 0}, {"every": 0}, {"on_trouble": "ignore"}])
def test_settings_out_of_their_domain_are_refused(bad):
    with pytest.raises((ConfigError, ValidationError)):
        Guard(**bad)


def test_each_stage_has_its_own_count():
    first, second = compile(toy_recipe(network()), [Guard()]).stages
    assert first.hooks[0] is not second.hooks[0]
    assert replace(first, hooks=()).hooks == ()
