"""Dropout for processors: the bits of torch's own, with one byte kept for each entry of fp32 instead of four."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ByteDropout(nn.Dropout):
    """`nn.Dropout` that keeps the mask of fp32 activations as booleans for the backward pass.

    On a processor `nn.Dropout` keeps what it multiplied by, a number of the input's type for each entry. The mask is drawn
    alike, so outputs and gradients are the same bits. Of two bytes it leaves both: one would be saved, and a step of MiniLM in
    bf16 takes 3 % longer then.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The same shape and type as `input`."""
        return dropped(input, self.p) if self.training else input


def dropped(x: Tensor, rate: float) -> Tensor:
    """`x` with entries set to zero with probability `rate` and the others scaled by 1 / (1 - rate)."""
    if rate > 0 and x.dtype == torch.float32:
        return torch.native_dropout(x, rate, True)[0]
    return nn.functional.dropout(x, rate)


def use_byte_dropout(module: nn.Module) -> None:
    """Replace the dropout layers inside a module, except those that work in place or are of a class of their own."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout and not child.inplace:
                own = ByteDropout(child.p)
                setattr(parent, name, own.train(child.training))
