"""The learning-rate range test: what it suggests on toys whose best rate is known, and when it says that it cannot."""

import math

import pytest
import torch
import toy
from torch import nn

from regraft.config.recipe import parse_recipe
from regraft.core import Loss, fit
from regraft.errors import RunError
from regraft.losses.supervised import cross_entropy
from regraft.optim.build import DescentBuilder
from regraft.optim.optimizers import SGD, AdamW
from regraft.optim.schedules import Cosine
from regraft.phases.rate_finder import Ramp, judged, losses_of, range_test, smoothed

LOW, HIGH, STEPS = 1e-6, 10.0, 120
RATES = [LOW * (HIGH / LOW) ** (k / (STEPS - 1)) for k in range(STEPS)]


def spiral():
    draw = torch.Generator().manual_seed(0)
    y, t = torch.randint(2, (512,), generator=draw), torch.rand(512, generator=draw) * 6 + 1
    angle = t + y * math.pi
    x = torch.stack([t * angle.cos(), t * angle.sin()], 1) / 4
    return {"x": x + 0.05 * torch.randn(512, 2, generator=draw), "y": y}


def line():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(512, 10, generator=draw) * torch.logspace(0, -1, 10)
    return {"x": x, "y": x @ (3 * torch.randn(10, generator=draw)) + 0.1 * torch.randn(512, generator=draw)}


def squares(model, batch, clock):
    return Loss((model(batch["x"]).squeeze(-1) - batch["y"]).square().mean(), len(batch["y"]))


def made(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def deep():
    inner = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(nn.Linear(2, 64), nn.ReLU(), *inner, nn.Linear(64, 2))


TOYS = {
    "blobs": (toy.mlp, toy.blobs(n=512), cross_entropy),
    "spiral": (deep, spiral(), cross_entropy),
    "line": (lambda: nn.Sequential(nn.Linear(10, 1)), line(), squares),
}


def recipe(name, optimizer, schedule, steps):
    build, data, objective = TOYS[name]
    update = DescentBuilder(optimizer=optimizer, schedule=schedule)
    return toy.recipe(toy.stage(model=made(build), data=data, objective=objective, steps=steps, update=update))


def final_loss(name, optimizer):
    try:
        losses = [record["loss"] for record in fit(recipe(name, optimizer, Cosine(), 150)).history][-20:]
    except RunError:
        return math.inf
    return sum(losses) / 20


@pytest.mark.inventory("lr-sensitivity", by="regraft lr")
@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("optimizer", [SGD(momentum=0.9), AdamW()], ids=["SGD", "AdamW"])
def test_the_suggestion_is_within_ten_times_the_best_rate_of_a_grid(name, optimizer):
    ramped = recipe(name, optimizer.replaced(lr=LOW), Ramp(top=HIGH / LOW), STEPS)
    losses = losses_of(ramped)
    found = judged(RATES[: len(losses)], losses)
    best = min((10 ** (k / 2) for k in range(-9, 3)), key=lambda rate: final_loss(name, optimizer.replaced(lr=rate)))
    assert best / 10 <= found.suggestion <= best * 10
    assert found.suggestion < found.lowest


@pytest.mark.inventory("lr-sensitivity", by="train.optimizer: {SGD: {lr: 0.1}}")
def test_a_rate_too_high_bounces_and_one_too_low_crawls():
    best = min((10 ** (k / 2) for k in range(-9, 3)), key=lambda rate: final_loss("line", SGD(lr=rate)))
    assert final_loss("line", SGD(lr=best / 1000)) > 2 * final_loss("line", SGD(lr=best))
    assert final_loss("line", SGD(lr=best * 30)) > 2 * final_loss("line", SGD(lr=best))


def test_a_ramp_goes_from_the_rate_to_its_top():
    from regraft.core import Clock

    ramp = Ramp(top=100.0)
    assert [ramp(Clock(k, 3)) for k in range(3)] == pytest.approx([1.0, 10.0, 100.0])


def test_smoothing_has_no_bias_of_its_start():
    assert smoothed([2.0] * 5) == pytest.approx([2.0] * 5)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([1.0, 2.0, math.nan], "left the ground after 2 steps"),
        ([1.0 + 0.1 * k for k in range(50)], "does not fall"),
        ([1.0] * 50, "does not fall"),
    ],
)
def test_losses_that_say_nothing_are_an_error(losses, said):
    with pytest.raises(RunError, match=said):
        judged(RATES[: len(losses)], losses)


RECIPE = """
data: {main: {path: wine}}
models: {main: {network: MLP}}
train: {batch_size: 32, optimizer: {SGD: {momentum: 0.9}}, schedule: OneCycle}
stages: [{name: adapt, steps: 500}]
"""


def test_a_recipe_is_tested_on_a_model_of_its_own():
    spec = parse_recipe(RECIPE)
    found = range_test(spec, low=1e-5, high=10.0, steps=60)
    again = range_test(spec, low=1e-5, high=10.0, steps=60)
    assert found == again
    assert 1e-3 <= found.suggestion <= 1.0
