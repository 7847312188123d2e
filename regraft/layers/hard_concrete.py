"""Gates that are exactly 0 or 1 with some probability, and can still be trained by gradient descent.

Louizos, Welling and Kingma, 2018, arXiv:1712.01312, section 2.2: a sigmoid of noise, stretched beyond [0, 1] and cut off there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1  # beta, gamma and zeta in the paper, with its values


def sampled_gates(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Gates in [0, 1] from uniform noise in (0, 1), in the shape of both. Eq. 10 and 11."""
    noise = uniform.log() - torch.log1p(-uniform)
    return _stretched((noise + log_alpha) / TEMPERATURE)


def settled_gates(log_alpha: Tensor) -> Tensor:
    """The gates of the finished network, without noise. Eq. 13."""
    return _stretched(log_alpha)


def open_probability(log_alpha: Tensor) -> Tensor:
    """How likely a sampled gate is not 0. Eq. 12."""
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-LOW / HIGH))


def _stretched(x: Tensor) -> Tensor:
    return (torch.sigmoid(x) * (HIGH - LOW) + LOW).clamp(0, 1)
