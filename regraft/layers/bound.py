"""An objective and its model as one module."""

from __future__ import annotations

from torch import nn

from regraft.core import Batch, Clock, Loss, Objective


class Bound(nn.Module):
    """Called on a batch, gives the objective's loss of the model, so that `torch.func.functional_call` can exchange weights.

    The model's parameters are called `model.<name>`.
    """

    def __init__(self, objective: Objective, model: nn.Module) -> None:
        super().__init__()
        self.objective, self.model = objective, model

    def forward(self, batch: Batch, clock: Clock) -> Loss:
        """The objective's loss."""
        return self.objective(self.model, batch, clock)
