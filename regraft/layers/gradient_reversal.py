"""A layer that is the identity forwards and turns the gradient round backwards. Ganin et al., 2016, arXiv:1505.07818, eq. 12."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


class _Reversal(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.weight = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * grads[0], None


def reverse_gradient(x: Tensor, weight: float) -> Tensor:
    """`x` unchanged; its gradient is multiplied by `-weight`."""
    return cast(Tensor, _Reversal.apply(x, weight))
