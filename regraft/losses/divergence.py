"""Kullback-Leibler divergences in closed form, in nats: of diagonal Gaussians, and of classes."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian_divergence(
    mean: Tensor, log_variance: Tensor, *, other_mean: Tensor | None = None, other_log_variance: Tensor | None = None
) -> Tensor:
    """KL(N(mean, diag e^log_variance) || N(other)) of means and log variances (..., D), summed over D: (...).

    Kingma and Welling, 2014, arXiv:1312.6114, appendix B, where the other one is the standard Gaussian, as it is by default.
    """
    shift = mean if other_mean is None else mean - other_mean
    log_ratio = log_variance if other_log_variance is None else log_variance - other_log_variance
    scaled = shift.square() if other_log_variance is None else shift.square() * torch.exp(-other_log_variance)
    return 0.5 * (scaled + torch.expm1(log_ratio) - log_ratio).sum(-1)


def categorical_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities (..., C): (...). A class that p excludes (-inf) adds nothing."""
    p = log_p.exp()
    gap = torch.where(p > 0, log_p - log_q, torch.zeros_like(log_p))
    return (p * gap).sum(-1)
