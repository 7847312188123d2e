"""Loss scaling for fp16: gradients that would underflow are computed of a loss that is multiplied by a large number.

Micikevicius et al., 2018, arXiv:1710.03740, section 3.2, with the dynamic rule and the defaults of `torch.amp.GradScaler`. The
scale is a power of two, so what neither over- nor underflows keeps its bits.
"""

from __future__ import annotations

from regraft.core.protocols import State

START = 2.0**16
LEAST = 1.0  # a gradient that is not finite even without scaling is no matter of the scale
GROW_EVERY = 2000  # good steps in a row after which the scale is doubled


class LossScale:
    """The scale, halved where gradients overflow and doubled after many good steps in a row."""

    def __init__(self, *, start: float = START, grow_every: int = GROW_EVERY) -> None:
        self.value, self.grow_every = start, grow_every
        self.good = 0  # steps in a row
        self.skipped = 0  # steps that were not made

    def good_step(self) -> None:
        """A step was made."""
        self.good += 1
        if self.good == self.grow_every:
            self.value, self.good = 2 * self.value, 0

    def overflowed(self) -> bool:
        """Gradients of a step overflowed: halve the scale, and say whether that can help."""
        if self.value <= LEAST:
            return False
        self.value, self.good = max(LEAST, self.value / 2), 0
        self.skipped += 1
        return True

    def state_dict(self) -> State:
        """Its three numbers."""
        return {"value": self.value, "good": self.good, "skipped": self.skipped}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        self.value, self.good, self.skipped = float(state["value"]), int(state["good"]), int(state["skipped"])
