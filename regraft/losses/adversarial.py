"""Losses of two players: a generator against a discriminator, features against a domain classifier."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Binary cross-entropy in nats of logits for real and for generated examples, the sum of both means.

    Goodfellow et al., 2014, arXiv:1406.2661, eq. 1, with the discriminator's output as a logit.
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """-log D(G(z)) of the discriminator's logits, mean: the non-saturating loss of Goodfellow et al., 2014, section 3."""
    return F.softplus(-fake).mean()


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E[f(fake)] - E[f(real)] of a critic's values: minus its estimate of the Wasserstein distance, up to its Lipschitz constant.

    Arjovsky et al., 2017, arXiv:1701.07875, eq. 2.
    """
    return fake.mean() - real.mean()


def critic_generator_loss(fake: Tensor) -> Tensor:
    """-E[f(fake)] of a critic's values. Arjovsky et al., 2017, arXiv:1701.07875, section 3."""
    return -fake.mean()


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """Mean of (|grad f(x)| - 1)^2 at points x between real and generated examples, differentiable by the critic's weights.

    Gulrajani et al., 2017, arXiv:1704.00028, eq. 3; `mix` (N,) in [0, 1] is the share of the real example.
    """
    share = mix.reshape(len(mix), *[1] * (real.ndim - 1)).to(real.dtype)
    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


def domain_loss(source: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy in nats of domain logits (N,) and (M,), target being class 1, mean over N + M.

    Ganin et al., 2016, arXiv:1505.07818, eq. 8.
    """
    logits = torch.cat([source, target])
    labels = torch.cat([torch.zeros_like(source), torch.ones_like(target)])
    return F.binary_cross_entropy_with_logits(logits, labels)


def reversal_weight(fraction: float, gamma: float) -> float:
    """2 / (1 + exp(-gamma p)) - 1 at progress p in [0, 1]: from 0 to nearly 1. Ganin et al., 2016, section 5.2.2."""
    return 2.0 / (1.0 + math.exp(-gamma * fraction)) - 1.0
