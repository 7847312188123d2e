"""The worst point near the weights: where to first order the loss is highest within a ball."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def ascent(weights: Sequence[Tensor], grads: Sequence[Tensor], rho: float, *, adaptive: bool = False) -> list[Tensor]:
    """The step from w to the worst point of a ball of radius `rho`, to first order: rho g / |g| over all tensors together.

    Foret et al., 2021, arXiv:2010.01412, eq. 2 with p = 2. Adaptive: rho w^2 g / |w g|, so that the ball is measured in
    shares of each weight; Kwon et al., 2021, arXiv:2102.11600, eq. 8. Nothing here waits for the device.
    """
    scaled = list(grads)
    if adaptive:
        scaled = [w.abs() * g for w, g in zip(weights, grads, strict=True)]
    norm = torch.stack(torch._foreach_norm(scaled)).norm()  # type: ignore[attr-defined]
    factor = rho / (norm + 1e-12)
    if adaptive:
        scaled = [w.abs() * s for w, s in zip(weights, scaled, strict=True)]
    return [factor * s for s in scaled]


@contextmanager
def climbed(params: Sequence[nn.Parameter], rho: float, *, adaptive: bool = False) -> Generator[None]:
    """Parameters moved by `ascent` along their `.grad` inside the block, and at exactly their old bits after it."""
    moved = [p for p in params if p.grad is not None]
    saved = [p.detach().clone() for p in moved]
    with torch.no_grad():
        steps = ascent(saved, [p.grad for p in moved if p.grad is not None], rho, adaptive=adaptive)
        for parameter, step in zip(moved, steps, strict=True):
            parameter.add_(step)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, original in zip(moved, saved, strict=True):
                parameter.copy_(original)
