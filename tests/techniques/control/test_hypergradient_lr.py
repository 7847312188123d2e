"""HypergradientLR: the derivative against finite differences, a rate that finds its way, and the guard that says so."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
import toy
from torch import nn

from regraft.core import Clock, compile, fit
from regraft.core.descent import Descent
from regraft.core.values import Loss
from regraft.optim.build import DescentBuilder
from regraft.optim.optimizers import SGD, Adam, AdamW, RMSprop
from regraft.techniques.control.adam_to_sgd import AdamToSGD
from regraft.techniques.control.hypergradient_lr import HypergradientLR, hypergradient

RATE = 0.03
OPTIMIZERS = [
    SGD(lr=RATE, momentum=0.0), SGD(lr=RATE, momentum=0.9), Adam(lr=RATE), AdamW(lr=RATE, weight_decay=0.1), RMSprop(lr=RATE),
]  # fmt: skip


def double(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)).double()


def batches():
    data = toy.blobs()
    return [{"x": data["x"][at : at + 32].double(), "y": data["y"][at : at + 32]} for at in range(0, 128, 32)]


def loss_of(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"])


def after(optimizer, rate_of_last, *, steps=3):
    """Model and the last step after `steps` steps, the last of which has another rate."""
    model = double()
    named = {f"model.{name}": p for name, p in model.named_parameters()}
    update = DescentBuilder(optimizer=optimizer, max_norm=None)(named)
    assert isinstance(update, Descent)
    taken = []
    for at in range(steps):
        if at == steps - 1:
            update.base_rates = [rate_of_last for _ in update.base_rates]
        before = [p.detach().clone() for p in model.parameters()]
        update(lambda part: Loss(loss_of(model, part)), batches()[at], Clock(at, steps))
        taken = [old - p.detach() for old, p in zip(before, model.parameters(), strict=True)]
    return model, taken


@pytest.mark.inventory("hpo-gradient", by="technique HypergradientLR")
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda each: type(each).__name__)
def test_the_hypergradient_is_that_of_finite_differences(optimizer):
    model, taken = after(optimizer, RATE)
    new = batches()[3]
    gradients = torch.autograd.grad(loss_of(model, new), list(model.parameters()))
    small = 1e-6
    up, down = (loss_of(after(optimizer, RATE + side)[0], new).item() for side in (small, -small))
    assert hypergradient(gradients, taken, RATE) == pytest.approx((up - down) / (2 * small), rel=1e-6)


class Bowl(nn.Module):
    """Half the squared length of the weights, so that a rate of 1 is the best and from 2 on it climbs."""

    def forward(self, model, batch, clock):
        return Loss(0.5 * model.weight.square().sum())


def descend(technique, *, rate, steps=60, optimizer=None, objective=None):
    model = nn.Linear(4, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    update = DescentBuilder(optimizer=optimizer or SGD(lr=rate, momentum=0.0), max_norm=None)
    stage = toy.stage(model, steps=steps, objective=objective or Bowl(), update=update, data={"x": torch.zeros(32, 4)})
    return fit(compile(toy.recipe(stage), [technique])), model


@pytest.mark.parametrize("rule", ["relative", "absolute"])
def test_a_rate_that_is_too_small_grows_and_the_loss_falls_faster(rule):
    beta = {"relative": 0.1, "absolute": 1e-4}[rule]
    report, _ = descend(HypergradientLR(beta=beta, rule=rule, limit=50), rate=0.01)
    plain, _ = descend(HypergradientLR(beta=0), rate=0.01)
    factors = [record["rate_factor"] for record in report.history]
    assert factors[0] == 1.0
    assert factors[-1] > 1.2
    assert factors == sorted(factors)
    assert report.last()["loss"] < 0.9 * plain.last()["loss"]
    assert "ended at" in report.notes[-1]


def test_a_rate_that_is_too_large_shrinks_before_it_climbs():
    report, _ = descend(HypergradientLR(beta=0.3), rate=1.9)
    plain, _ = descend(HypergradientLR(beta=0), rate=1.9)
    assert report.last()["rate_factor"] < 0.8
    assert report.last()["loss"] < 0.01 * plain.last()["loss"]


def test_the_absolute_rule_is_the_papers_by_hand():
    """In the bowl g = w, so the second step has the rate a + beta w_1 . w_0."""
    rate, beta = 0.1, 0.01
    _, model = descend(HypergradientLR(beta=beta, rule="absolute"), rate=rate, steps=2)
    first = 1 - rate
    second = rate + beta * 4 * first * 1.0
    assert model.weight[0, 0].item() == pytest.approx(first * (1 - second), rel=1e-6)


@pytest.mark.inventory("hpo-unstable", by="technique HypergradientLR")
def test_a_rate_that_would_leave_its_bounds_is_held_there_and_the_report_says_so():
    report, _ = descend(HypergradientLR(beta=1.0, limit=4), rate=0.001, steps=30)
    factors = [record["rate_factor"] for record in report.history]
    assert max(factors) == 4.0
    assert max(b / a for a, b in pairwise(factors)) <= 2.0 + 1e-6
    assert "HypergradientLR is unstable: at step" in report.notes[0]
    assert "held between 1/4 and 4 times; lower beta" in report.notes[0]
    assert "it was held at a bound in" in report.notes[-1]


@pytest.mark.inventory("hpo-unstable", by="technique HypergradientLR")
def test_a_sign_that_turns_in_every_step_halves_beta_and_the_report_says_so():
    class Swinging(nn.Module):
        """A slope that is turned after every other step."""

        def forward(self, model, batch, clock):
            return Loss((-1.0 if clock.step % 4 in (1, 2) else 1.0) * model.weight.sum())

    report, _ = descend(HypergradientLR(beta=0.05), rate=0.01, steps=25, objective=Swinging())
    assert report.notes[0].startswith(
        "HypergradientLR is unstable: the hypergradient turned its sign in 19 of the 20 steps"
    )
    assert "beta is halved to 0.025" in report.notes[0]


def test_steps_that_agree_are_no_alarm():
    report, _ = descend(HypergradientLR(beta=0.02), rate=0.01)
    assert [note for note in report.notes if "unstable" in note] == []


def test_groups_keep_their_share_and_the_schedule_its_shape():
    from regraft.optim.schedules import Linear

    model = toy.mlp()
    named = {f"model.{name}": p for name, p in model.named_parameters()}
    builder = DescentBuilder(optimizer=AdamW(lr=0.01, weight_decay=0.1), schedule=Linear(warmup=0.0))
    stage = toy.stage(model, update=builder)
    update = compile(toy.recipe(stage), [HypergradientLR(beta=0.2)]).stages[0].update(named)
    update.scale_rates({"model.0.weight": 0.5})
    begin = list(update.descent.base_rates)
    for at in range(4):
        update(lambda part: stage.objective(model, part, Clock(0, 10)), toy.blobs(), Clock(at, 10))
    now = update.descent.base_rates
    assert update.scale != 1.0
    assert [b / a for a, b in zip(begin, now, strict=True)] == pytest.approx([update.scale] * len(begin))
    assert update.descent.optimizer.param_groups[0]["lr"] == pytest.approx(now[0] * 0.7)  # the schedule at step 3 of 10


def test_it_goes_on_beside_a_switch_of_the_optimizer():
    model = copy.deepcopy(toy.mlp())
    report = fit(compile(toy.recipe(toy.stage(model, steps=60)), [AdamToSGD(at=0.5), HypergradientLR(beta=0.05)]))
    assert any("AdamToSGD: from step" in note for note in report.notes)
    assert report.last()["loss"] < report.history[0]["loss"]
