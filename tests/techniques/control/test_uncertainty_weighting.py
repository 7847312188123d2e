"""UncertaintyWeighting: what it learns of tasks whose noise is known, and its formula against a likelihood."""

import pytest
import torch
import toy
from torch import nn

from regraft.core import compile, fit
from regraft.core.seeding import generator
from regraft.errors import Conflict
from regraft.losses.criterion import objective_of, question_of
from regraft.techniques.control.uncertainty_weighting import UncertaintyWeighting, weighted_by_noise

NOISE = {"clear": 0.1, "dim": 0.5, "lost": 1.0}


def test_the_weighted_loss_is_the_likelihood_of_a_gaussian_up_to_a_constant():
    error, s = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    likelihood = torch.distributions.Normal(0.0, (s / 2).exp()).log_prob(error)
    constant = 0.5 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
    torch.testing.assert_close(weighted_by_noise(error.square(), s), -likelihood - constant, rtol=1e-12, atol=1e-12)


def test_its_gradient_is_that_of_finite_differences_and_vanishes_at_the_logarithm_of_the_loss():
    losses = torch.rand(4, dtype=torch.float64, requires_grad=True)
    s = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(weighted_by_noise, (losses, s))
    best = losses.detach().log().requires_grad_()
    (slope,) = torch.autograd.grad(weighted_by_noise(losses.detach(), best).sum(), best)
    assert slope.abs().max() < 1e-12


def noisy(n=512):
    """Three targets of one input, each with a noise of its own; all of variance 1."""
    draw = generator(3)
    x = torch.randn(n, 4, generator=draw)
    signal = torch.tanh(x @ torch.randn(4, 3, generator=draw))
    signal = (signal - signal.mean(0)) / signal.std(0)
    noise = torch.tensor(list(NOISE.values()))
    return {"x": x, "y": (1 - noise.square()).clamp(min=0).sqrt() * signal + noise * torch.randn(n, 3, generator=draw)}


def trained(*techniques, steps=400, **loss):
    data = noisy()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))
    objective = objective_of(None, question_of("regression", data["y"], 3, tuple(NOISE)))
    stage = toy.stage(model, steps=steps, data=data, objective=objective)
    return fit(compile(toy.recipe(stage), techniques)), model


@pytest.mark.inventory("uncertainty-weighting", by="technique UncertaintyWeighting")
def test_learned_log_variances_rank_the_tasks_by_their_noise():
    report, _ = trained(UncertaintyWeighting())
    found = [report.last()[f"log_variance/{name}"] for name in NOISE]
    assert found == sorted(found)
    for value, (low, high) in zip(found, ((-9, -2.5), (-2.5, -0.5), (-0.5, 0.5)), strict=True):
        assert low < value < high, found  # log 0.01, log 0.25 and log 1, and what is not learned yet
    assert "the least noisy first: clear " in report.notes[0]


def test_the_clear_task_is_learned_better_than_where_all_count_the_same():
    """After a short training, in which the noisy tasks would else set the pace."""

    def error(*techniques):
        _, model = trained(*techniques, steps=120)
        data = noisy()
        return float((model(data["x"])[:, 0] - data["y"][:, 0]).detach().square().mean())

    assert error(UncertaintyWeighting(speed=20)) < error()


def test_one_task_is_refused_in_a_sentence():
    with pytest.raises(Conflict, match="UncertaintyWeighting weighs several tasks against each other"):
        compile(toy.recipe(toy.stage()), [UncertaintyWeighting()])
