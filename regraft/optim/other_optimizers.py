"""Optimizers of the pytorch_optimizer package, as data; it is large, and imported where one of them is used."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field

from regraft.optim.optimizers import Optimizer, numel


class Lion(Optimizer):
    """Steps of the same size for all weights, in the direction of the sign of a momentum. Chen et al., 2023, arXiv:2302.06675.

    One buffer a weight, half of Adam's memory. Rates are three to ten times lower than AdamW's and decays as much higher
    (section 5 of the paper). It wants large batches: the sign of a noisy gradient is mostly noise.
    """

    lr: float = Field(default=1e-4, ge=0)
    weight_decay: float = Field(default=0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)

    def over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Lion with decoupled decay."""
        from pytorch_optimizer import Lion as TheirLion

        return TheirLion(groups, lr=self.lr, betas=self.betas)

    def state_numel(self, shape: tuple[int, ...]) -> int:
        """The momentum."""
        return numel(shape)


class Shampoo(Optimizer):
    """A preconditioner for each side of a matrix, from the products of its gradients.

    Gupta et al., 2018, arXiv:1802.09568, algorithm 1. It uses curvature between weights, which Adam cannot, for the price of a
    root of a matrix for each side: use it where sides are at most some hundreds, and compute the roots seldom.

    Attributes:
        every: steps between two computations of the roots; nothing moves before the first.
        eps: added to the diagonal of a preconditioner.
    """

    lr: float = Field(default=1e-2, ge=0)
    every: int = Field(default=1, ge=1)
    eps: float = Field(default=1e-6, gt=0)

    def over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Shampoo over every side."""
        from pytorch_optimizer import Shampoo as TheirShampoo

        return TheirShampoo(groups, lr=self.lr, preconditioning_compute_steps=self.every, matrix_eps=self.eps)

    def state_numel(self, shape: tuple[int, ...]) -> int:
        """A preconditioner and its root for each side, and a buffer that the package keeps for a momentum."""
        return sum(2 * side * side for side in shape) + numel(shape)


class SOAP(Optimizer):
    """Adam in the eigenbasis of Shampoo's preconditioners. Vyas et al., 2024, arXiv:2409.11321, algorithm 3.

    Attributes:
        every: steps between two computations of the basis.
        betas: of Adam's moments.
    """

    lr: float = Field(default=3e-3, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.95, 0.95)
    every: int = Field(default=10, ge=1)

    def over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """SOAP over matrices, Adam over vectors."""
        from pytorch_optimizer import SOAP as TheirSOAP

        return TheirSOAP(groups, lr=self.lr, betas=self.betas, precondition_frequency=self.every)

    def state_numel(self, shape: tuple[int, ...]) -> int:
        """Two moments, and for each side of a matrix a preconditioner and its basis."""
        return 2 * numel(shape) + (sum(2 * side * side for side in shape) if len(shape) > 1 else 0)
