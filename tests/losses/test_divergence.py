"""Divergences: against torch.distributions, a Monte-Carlo estimate and finite differences."""

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from regraft.losses.divergence import categorical_divergence, gaussian_divergence


def gaussians(seed=0, shape=(5, 3)):
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(4))


def as_normal(mean, log_variance):
    return Independent(Normal(mean, (log_variance / 2).exp()), 1)


@pytest.mark.inventory("kl-term", by="technique InformationBottleneck, technique Distillation")
def test_the_closed_form_is_the_mean_of_the_log_ratio_over_many_draws():
    mean, log_variance, other_mean, other_log = gaussians()
    p, q = as_normal(mean, log_variance), as_normal(other_mean, other_log)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = p.sample((200_000,))
    for exact, other in (
        (gaussian_divergence(mean, log_variance, other_mean=other_mean, other_log_variance=other_log), q),
        (gaussian_divergence(mean, log_variance), as_normal(torch.zeros_like(mean), torch.zeros_like(mean))),
    ):
        ratio = p.log_prob(x) - other.log_prob(x)
        error = ratio.std(0) / len(x) ** 0.5
        assert ((ratio.mean(0) - exact).abs() < 4 * error).all()


@pytest.mark.inventory("kl-term", by="technique InformationBottleneck, technique Distillation")
def test_the_closed_forms_are_those_of_torch_distributions():
    mean, log_variance, other_mean, other_log = gaussians(1)
    ours = gaussian_divergence(mean, log_variance, other_mean=other_mean, other_log_variance=other_log)
    theirs = kl_divergence(as_normal(mean, log_variance), as_normal(other_mean, other_log))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    log_p, log_q = mean.log_softmax(-1), other_mean.log_softmax(-1)
    theirs = kl_divergence(Categorical(logits=log_p), Categorical(logits=log_q))
    torch.testing.assert_close(categorical_divergence(log_p, log_q), theirs, rtol=1e-10, atol=1e-14)


def test_it_is_nothing_for_equal_distributions_and_finite_where_a_class_is_excluded():
    mean, log_variance, *_ = gaussians(2)
    same = gaussian_divergence(mean, log_variance, other_mean=mean, other_log_variance=log_variance)
    assert same.abs().max().item() == 0
    assert gaussian_divergence(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [0.0, 0.0]
    log_p = torch.tensor([0.0, 1.0, 0.0]).log()
    assert categorical_divergence(log_p, torch.full((3,), 1 / 3).log()).item() == pytest.approx(1.0986123)


def test_a_variance_near_that_of_the_other_keeps_its_digits():
    """e^s - 1 - s of a small s is s^2 / 2; computed as a difference in fp32 it would be 0 or worse."""
    s = torch.full((1, 1), 1e-3)
    assert gaussian_divergence(torch.zeros(1, 1), s).item() == pytest.approx(0.25e-6, rel=2e-3)


def test_gradients_are_those_of_finite_differences():
    inputs = tuple(x.requires_grad_() for x in gaussians(3, (2, 3)))
    assert torch.autograd.gradcheck(
        lambda m, s, om, os: gaussian_divergence(m, s, other_mean=om, other_log_variance=os), inputs
    )
    assert torch.autograd.gradcheck(gaussian_divergence, inputs[:2])
    assert torch.autograd.gradcheck(
        lambda a, b: categorical_divergence(a.log_softmax(-1), b.log_softmax(-1)), (inputs[0], inputs[2])
    )
