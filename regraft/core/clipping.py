"""Gradient clipping by value and by global norm, and how often there was something to clip."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regraft.core.finite import Finite
from regraft.core.protocols import State


class Clipping:
    """Cuts entries of gradients off at `max_value`, then scales all of them down to a global L2 norm of `max_norm`.

    Pascanu et al., 2013, arXiv:1211.5063, algorithm 1 for the norm, which keeps the direction; cutting off values does not.
    Nothing is made finite by clipping: gradients that hold nan or inf are found before, and left as they are.
    """

    def __init__(self, params: Sequence[nn.Parameter], *, max_norm: float | None, max_value: float | None) -> None:
        self.params, self.max_norm, self.max_value = params, max_norm, max_value
        self.finite = Finite(params)
        self.steps, self.clipped = 0, 0  # steps so far, and those in which something was above a limit

    def __call__(self, grads: Sequence[Tensor], loss: Tensor | None) -> bool:
        """Clip the gradients; False where they or the loss are not finite."""
        if (self.max_norm is None or self.max_value is not None) and not self.finite(grads, loss):
            return False
        cut = self._values(grads) if self.max_value is not None else False
        if self.max_norm is not None:
            norm = nn.utils.get_total_norm(grads)  # which is not finite where any gradient is not
            length = float(norm if loss is None else torch.add(norm, loss, alpha=0))  # 0 * nan is nan
            if not math.isfinite(length):
                return False
            nn.utils.clip_grads_with_norm_(self.params, self.max_norm, norm)
            cut = cut or length > self.max_norm
        self.steps, self.clipped = self.steps + 1, self.clipped + cut
        return True

    def _values(self, grads: Sequence[Tensor]) -> bool:
        """Cut values off; was there one to cut off?"""
        assert self.max_value is not None
        largest = nn.utils.get_total_norm(grads, norm_type=math.inf)
        nn.utils.clip_grad_value_(self.params, self.max_value)
        return float(largest) > self.max_value

    def said(self) -> str | None:
        """`gradients were clipped in 12 of 100 steps (12 %; max_norm 1)`; None where nothing was."""
        if not self.clipped:
            return None
        limits = [f"{name} {limit:g}" for name, limit in self._limits().items() if limit is not None]
        share = self.clipped / self.steps
        return f"gradients were clipped in {self.clipped:,} of {self.steps:,} steps ({share:.0%}; {', '.join(limits)})"

    def _limits(self) -> dict[str, float | None]:
        return {"max_value": self.max_value, "max_norm": self.max_norm}

    def state_dict(self) -> State:
        """The counts."""
        return {"steps": self.steps, "clipped": self.clipped}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        self.steps, self.clipped = int(state["steps"]), int(state["clipped"])
