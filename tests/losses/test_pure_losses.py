"""Losses and layers against independent formulas."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from torch import nn

from regraft.layers.bound import Bound
from regraft.layers.capture import captured_input
from regraft.losses.adversarial import discriminator_loss, domain_loss, generator_loss
from regraft.losses.distillation import distillation_loss
from regraft.losses.policy import clipped_surrogate, policy_divergence
from regraft.losses.supervised import (
    binary_cross_entropy,
    cross_entropy,
    objective_for,
    per_example_losses,
    squared_error,
)


def logits(n=7, classes=5, seed=0):
    return 3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation_is_the_scaled_divergence_of_the_softened_distributions(temperature):
    student, teacher = logits(seed=1), logits(seed=2)
    p, q = (softmax(x.numpy() / temperature, axis=1) for x in (teacher, student))
    expected = temperature**2 * rel_entr(p, q).sum(1).mean()
    assert distillation_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-10)


def test_distillation_is_zero_at_the_teacher_and_its_gradient_does_not_shrink_with_temperature():
    x = logits()
    assert distillation_loss(x, x, 3.0).item() == pytest.approx(0, abs=1e-12)
    norms = []
    for temperature in (5.0, 50.0):
        student = logits(seed=1).requires_grad_()
        norms.append(torch.autograd.grad(distillation_loss(student, x, temperature), student)[0].norm().item())
    assert norms[1] == pytest.approx(norms[0], rel=0.3)  # without T^2 it would be a hundredth


def test_the_gradient_of_distillation_is_right():
    student = logits(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: distillation_loss(x, logits(3, 4, seed=2), 2.0), student)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.0, 2.0, -2.0), (1.5, 2.0, -2.4), (0.5, 2.0, -1.0), (1.5, -2.0, 3.0), (0.5, -2.0, 1.6)],
)
def test_the_surrogate_is_clipped_only_where_that_makes_it_more_pessimistic(ratio, advantage, expected):
    log_p = torch.tensor(math.log(ratio))
    assert clipped_surrogate(log_p, torch.tensor(0.0), torch.tensor(advantage), 0.2).item() == pytest.approx(
        expected, rel=1e-6
    )


def test_the_divergence_of_policies_is_scipys():
    one, other = logits(seed=1), logits(seed=2)
    expected = rel_entr(softmax(one.numpy(), axis=1), softmax(other.numpy(), axis=1)).sum(1)
    torch.testing.assert_close(policy_divergence(one, other), torch.from_numpy(expected))


def test_the_two_players_lose_log_two_where_nobody_knows_and_less_where_they_win():
    zero = torch.zeros(4, 1)
    assert discriminator_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert generator_loss(zero).item() == pytest.approx(math.log(2))
    real, fake = torch.tensor([[2.0]]), torch.tensor([[-1.0]])
    p, q = torch.sigmoid(real), torch.sigmoid(fake)
    assert discriminator_loss(real, fake).item() == pytest.approx((-p.log() - (1 - q).log()).item())
    assert generator_loss(fake).item() == pytest.approx(-q.log().item())


def test_the_domain_loss_counts_every_example_once_whatever_the_sizes():
    source, target = torch.randn(3), torch.randn(9)
    losses = torch.cat([nn.functional.softplus(source), nn.functional.softplus(-target)])
    torch.testing.assert_close(domain_loss(source, target), losses.mean())


class Fixed(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


def test_cross_entropy_leaves_unlabelled_rows_out_and_weighs_by_the_labelled():
    x, y = logits(6, 5), torch.tensor([0, -1, 4, 2, -1, 1])
    loss = cross_entropy(Fixed(x), {"x": x, "y": y}, None)
    known = y >= 0
    expected = -log_softmax(x.numpy(), axis=1)[known.numpy(), y[known].numpy()].mean()
    assert loss.value.item() == pytest.approx(expected, rel=1e-6)
    assert int(loss.weight) == 4
    assert loss.terms["accuracy"].item() == pytest.approx((x.argmax(1)[known] == y[known]).float().mean().item())


def test_a_batch_without_a_label_loses_nothing():
    x = logits(3)
    loss = cross_entropy(Fixed(x), {"x": x, "y": torch.full((3,), -1)}, None)
    assert loss.value.item() == 0


def test_the_other_tasks_have_the_textbook_losses():
    x = logits(6, 3).float()
    y = (logits(6, 3, seed=4) > 0).float()
    expected = nn.functional.binary_cross_entropy(torch.sigmoid(x), y)
    torch.testing.assert_close(binary_cross_entropy(Fixed(x), {"x": x, "y": y}, None).value, expected)
    target = torch.randn(6)
    value = squared_error(Fixed(x[:, :1]), {"x": x, "y": target}, None).value
    torch.testing.assert_close(value, (x[:, 0] - target).square().mean())


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression"])
def test_per_example_losses_average_to_the_objective(task):
    x = logits(6, 1 if task == "regression" else 4).float()
    y = {"multilabel": (x > 0.5).float(), "regression": torch.randn(6)}.get(task, torch.tensor([0, 1, 2, 3, 1, 1]))
    mean = objective_for(task)(Fixed(x), {"x": x, "y": y}, None).value
    torch.testing.assert_close(per_example_losses(x, y, task).mean(), mean)


def test_captured_inputs_are_those_of_every_call_and_the_hook_is_gone_after():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    x = torch.ones(4, 3)
    with captured_input(model[2]) as seen:
        model(x)
        model(2 * x)
    model(3 * x)
    assert len(seen) == 2
    assert torch.equal(seen[1], model[:2](2 * x))


def test_the_bound_module_names_the_models_weights():
    bound = Bound(cross_entropy, nn.Linear(2, 3))
    assert [name for name, _ in bound.named_parameters()] == ["model.weight", "model.bias"]
