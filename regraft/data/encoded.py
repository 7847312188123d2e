"""Examples ready for a model: what a source draws batches from."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor


class Encoded(Protocol):
    """N examples of one split in the form a model takes, in memory or memory-mapped."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Batch keys the model is called on: ("input_ids", "attention_mask") for text, ("pixel_values",) or ("x",)."""
        ...

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64 length of each example: tokens for text, 1 where all examples have one shape."""
        ...

    def __len__(self) -> int: ...

    def collate(self, rows: np.ndarray, /) -> dict[str, Tensor]:
        """The examples `rows` (M,) as tensors that share their first dimension M, padded to the longest of them."""
        ...


class Preprocessor(Protocol):
    """Turns raw columns into `Encoded` the same way at training and at prediction; saved with the model."""

    def encode(self, columns: dict[str, list[object]], /) -> Encoded:
        """Raw values by column name -> examples. Text: str; image: bytes (an image file); table: str, int, float or None."""
        ...

    def to_json(self) -> dict[str, object]:
        """Everything needed to make this preprocessor again, as JSON (`{"kind": ..., ...}`)."""
        ...
