"""Some rows of encoded examples, as encoded examples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from regraft.data.encoded import Encoded


@dataclass(frozen=True)
class Rows:
    """The rows at some positions of encoded examples."""

    base: Encoded
    rows: np.ndarray  # (M,) positions

    @property
    def inputs(self) -> tuple[str, ...]:
        """Those of the examples."""
        return self.base.inputs

    @property
    def lengths(self) -> np.ndarray:
        """Of the chosen rows."""
        return self.base.lengths[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def collate(self, rows: np.ndarray, /) -> dict[str, Tensor]:
        """The rows asked for, counted among the chosen ones."""
        return self.base.collate(self.rows[rows])


def spread(encoded: Encoded, most: int) -> Rows:
    """At most so many rows, evenly spaced."""
    return Rows(encoded, np.unique(np.linspace(0, len(encoded) - 1, min(most, len(encoded))).astype(np.int64)))
