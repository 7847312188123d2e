"""Examples ready for a model: what a source draws batches from."""

from __future__ import annotations

from typing import Protocol

from regraft.core.protocols import Encoded as Encoded


class Preprocessor(Protocol):
    """Turns raw columns into `Encoded` the same way at training and at prediction; saved with the model."""

    def encode(self, columns: dict[str, list[object]], /) -> Encoded:
        """Raw values by column name -> examples. Text: str; image: bytes (an image file); table: str, int, float or None."""
        ...

    def to_json(self) -> dict[str, object]:
        """Everything needed to make this preprocessor again, as JSON (`{"kind": ..., ...}`)."""
        ...
