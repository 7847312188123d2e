"""The network for tables: a linear model of the columns plus a residual network that starts at zero.

At the start it is exactly the linear model, so a head fitted to convergence is where training begins, as it is with a graft on
a pretrained backbone (Cheng et al. 2016, arXiv:1606.07792; here without crossed features).
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from regraft.models.graft import put_linear
from regraft.models.heads import folded
from regraft.models.networks import Network, PlainNetwork, ResidualMLP


class WideDeepNetwork(PlainNetwork):
    """Rows (N, F) -> logits (N, C): `head(x) + deep(x)`, where `deep` gives zeros until it is trained."""

    def __init__(self, num_inputs: int, num_outputs: int, *, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.deep = ResidualMLP(num_inputs, num_outputs, width=width, depth=depth, dropout=dropout)
        nn.init.zeros_(self.deep.head.weight)
        nn.init.zeros_(self.deep.head.bias)
        self.head = nn.Linear(num_inputs, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C)."""
        return self.head(x) + self.deep(x)

    def features(self, x: Tensor) -> Tensor:
        """The head's input: the columns themselves, (N, F)."""
        return x

    @torch.no_grad()
    def set_head(
        self, weight: Tensor, bias: Tensor, *, mean: Tensor | None = None, deviation: Tensor | None = None
    ) -> None:
        """Put in a linear model fitted on standardised columns; the standardisation is folded into it."""
        put_linear(self.head, *folded(weight, bias, mean=mean, deviation=deviation))


class WideDeep(Network):
    """A linear model plus residual blocks on the columns of a table.

    Attributes:
        width: of the hidden layers; each block is twice as wide inside.
        depth: number of residual blocks.
        dropout: inside each block.
    """

    width: int = Field(default=128, ge=1)
    depth: int = Field(default=2, ge=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)

    def make(self, input_shape: tuple[int, ...], num_outputs: int) -> WideDeepNetwork:
        """Takes rows of the given width."""
        return WideDeepNetwork(
            math.prod(input_shape), num_outputs, width=self.width, depth=self.depth, dropout=self.dropout
        )
