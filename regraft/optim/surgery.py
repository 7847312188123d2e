"""Gradient surgery: what is left of the gradients of several tasks when none works against another.

Yu et al., 2020, arXiv:2001.06782, algorithm 1. A projected gradient is a sum of the given ones, so all is computed from their
inner products: the gradients themselves are read twice, however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def inner_products(gradients: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """(T, T) float64 inner products of T gradients, each a tensor or None (for zero) for every parameter; on the processor.

    They are added up where the gradients are, and fetched from there once.
    """
    count = len(gradients)
    device = next((part.device for parts in gradients for part in parts if part is not None), None)
    total = torch.zeros(count, count, dtype=torch.float64, device=device)
    for parts in zip(*gradients, strict=True):
        like = next((part for part in parts if part is not None), None)
        if like is not None:
            rows = torch.stack([torch.zeros_like(like) if part is None else part for part in parts]).flatten(1).double()
            total += rows @ rows.T
    return total.cpu()


def conflicts(products: Tensor) -> float:
    """Share of the pairs of gradients whose inner product is negative, from their inner products (T, T)."""
    above = torch.triu(torch.ones_like(products), diagonal=1).bool()
    return float((products.numpy()[above.numpy()] < 0).mean())


def projected(products: Tensor, orders: Sequence[Sequence[int]], *, rounds: int = 1) -> Tensor:
    """(T, T) coefficients: row i says of which given gradients the projected gradient i is the sum.

    Gradient i goes through the others in `orders[i]`; where it has a negative inner product with one of them, as it was
    given, its part along it is taken off.

    Args:
        products: (T, T) inner products of the given gradients.
        orders: for each task the others, in the order in which it meets them.
        rounds: how often it meets all of them. Once is algorithm 1; from three tasks on the last projections can bring back a
            conflict with an earlier one, which more rounds remove.
    """
    known, out = products.numpy(), np.eye(len(products))
    for own, order in zip(out, orders, strict=True):
        for _ in range(rounds):
            changed = False
            for other in order:
                along = own @ known[:, other]
                if along < 0:  # then the other is not zero
                    own[other] -= along / known[other, other]
                    changed = True
            if not changed:
                break
    return torch.from_numpy(out).to(products.dtype)
