"""Sharpness-aware minimisation: descend along the gradient found at the worst point nearby."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from pydantic import Field

from regraft.core import Batch, Loss, Recipe, Technique, Update, UpdateWrapper, each_stage
from regraft.core.descent import overflowed
from regraft.core.protocols import LossFn, NamedParams, UpdateBuilder
from regraft.optim.ascent import climbed


class SAMUpdate(UpdateWrapper):
    """The wrapped update, with the gradient of the climbed point; the loss it reports is that of the point itself."""

    def __init__(self, base: Update, rho: float, adaptive: bool) -> None:
        super().__init__(base)
        self.rho, self.adaptive = rho, adaptive

    def gradients(self, loss_fn: LossFn, batch: Batch) -> Loss:
        """Two forward and backward passes: at the weights, and where the loss rises fastest."""
        loss = self.base.gradients(loss_fn, batch)
        if overflowed(self.base):  # running statistics must not see the weights that such a gradient leads to
            return loss
        with climbed(self.params, self.rho, adaptive=self.adaptive):
            self.base.gradients(loss_fn, batch)
        return loss


@dataclass(frozen=True)
class Climbing:
    """Builds an update and wraps it as a `SAMUpdate`."""

    base: UpdateBuilder
    rho: float
    adaptive: bool

    def __call__(self, params: NamedParams) -> Update:
        """The update of these parameters."""
        return SAMUpdate(self.base(params), self.rho, self.adaptive)


class SAM(Technique):
    """Minimises the loss of the worst point within `rho` of the weights instead of the loss at the weights.

    Foret et al., 2021, arXiv:2010.01412, algorithm 1; `adaptive` is Kwon et al., 2021, arXiv:2102.11600. Accumulation climbs
    once for the whole batch, not for each slice.

    Use it when there is little data and training accuracy is already near 1: flat minima generalise better.
    Not when time is short, for a step costs twice; running statistics of batch normalisation see both passes.

    Attributes:
        rho: radius of the ball in the L2 norm of all trained weights; 0 turns it off.
        adaptive: measure the radius in shares of each weight; then rho is about 10 times larger.

    Example:
        ```yaml
        techniques:
          - SAM: {rho: 0.05}
        ```
    """

    rho: float = Field(default=0.05, ge=0)
    adaptive: bool = Field(default=False)

    wraps: ClassVar[frozenset[str]] = frozenset({"update"})

    def apply(self, recipe: Recipe) -> Recipe:
        """Wrap the update of every stage."""
        if self.rho == 0:
            return recipe
        return each_stage(recipe, lambda stage: replace(stage, update=Climbing(stage.update, self.rho, self.adaptive)))
