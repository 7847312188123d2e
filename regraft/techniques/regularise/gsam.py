"""Surrogate-gap minimisation: sharpness-aware, with the gap between the worst point and the weights made small by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from regraft.core import Batch, Loss, Recipe, Technique, Update, UpdateWrapper, each_stage
from regraft.core.descent import overflowed
from regraft.core.protocols import LossFn, NamedParams, UpdateBuilder
from regraft.optim.ascent import climbed


def across(gradient: Sequence[Tensor], worst: Sequence[Tensor]) -> list[Tensor]:
    """The part of `gradient` at right angles to `worst`, over all tensors together."""
    inner = torch.stack([(g * w).sum() for g, w in zip(gradient, worst, strict=True)]).sum()
    square = torch.stack([w.square().sum() for w in worst]).sum()
    share = inner / (square + 1e-12)
    return [g - share * w for g, w in zip(gradient, worst, strict=True)]


class GSAMUpdate(UpdateWrapper):
    """The wrapped update, with the gradient at the worst point less `alpha` times the part of the plain one across it."""

    def __init__(self, base: Update, rho: float, alpha: float) -> None:
        super().__init__(base)
        self.rho, self.alpha = rho, alpha

    def gradients(self, loss_fn: LossFn, batch: Batch) -> Loss:
        """Two forward and backward passes; `gap` in the log is the loss at the worst point minus that at the weights."""
        loss = self.base.gradients(loss_fn, batch)
        if overflowed(self.base):  # running statistics must not see the weights that such a gradient leads to
            return loss
        moved = [p for p in self.params if p.grad is not None]
        plain = [p.grad for p in moved if p.grad is not None]
        with climbed(self.params, self.rho):
            worst = self.base.gradients(loss_fn, batch)
        with torch.no_grad():
            grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in moved]
            for parameter, grad, part in zip(moved, grads, across(plain, grads), strict=True):
                parameter.grad = grad - self.alpha * part
        return Loss(loss.value, loss.weight, {**loss.terms, "gap": worst.value - loss.value})


@dataclass(frozen=True)
class NarrowingTheGap:
    """Builds an update and wraps it as a `GSAMUpdate`."""

    base: UpdateBuilder
    rho: float
    alpha: float

    def __call__(self, params: NamedParams) -> Update:
        """The update of these parameters."""
        return GSAMUpdate(self.base(params), self.rho, self.alpha)


class GSAM(Technique):
    """Minimises the loss of the worst point within `rho`, and climbs along what does not change it to narrow the gap to it.

    Zhuang et al., 2022, arXiv:2203.08065, algorithm 1: of the gradient at the weights the part at right angles to the one at the
    worst point is taken off, `alpha` times, so that the loss of the worst point falls as with SAM and the surrogate gap with it.
    The paper lets `rho` follow the learning rate; here it stays. The gap is logged as `gap`.

    Use it when SAM helps and its minima are still sharp: the loss nearby is high although that of SAM is low.
    Not when time is short, for a step costs two passes as with SAM.

    Attributes:
        rho: radius of the ball in the L2 norm of all trained weights; 0 turns it off.
        alpha: of the part that is taken off; 0 is SAM.

    Example:
        ```yaml
        techniques:
          - GSAM: {rho: 0.05, alpha: 0.2}
        ```
    """

    rho: float = Field(default=0.05, ge=0)
    alpha: float = Field(default=0.2, ge=0)

    wraps: ClassVar[frozenset[str]] = frozenset({"update"})

    def apply(self, recipe: Recipe) -> Recipe:
        """Wrap the update of every stage."""
        if self.rho == 0:
            return recipe
        builder = NarrowingTheGap
        return each_stage(recipe, lambda stage: replace(stage, update=builder(stage.update, self.rho, self.alpha)))
