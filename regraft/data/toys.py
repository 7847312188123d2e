"""Rows of eight numbers shown as pictures and as texts: toy data on which one small network can train whatever it is shown."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from regraft.data.text import TextColumns


class ToyPictures:
    """Rows (N, 8) as grey pictures of 2 x 4 pixels with 256 levels, under the key `x`."""

    inputs = ("x",)
    scale, shift = (12 / 255,), (-6.0,)

    def __init__(self, x: Tensor) -> None:
        self.pixels = ((x.view(-1, 1, 2, 4) + 6) / 12 * 255).round().clamp(0, 255)

    @property
    def lengths(self) -> np.ndarray:
        """All of one size."""
        return np.ones(len(self.pixels), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.pixels)

    def collate(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The pictures asked for (M, 1, 2, 4), as a network takes them."""
        return {"x": self.pixels[torch.from_numpy(rows)] * self.scale[0] + self.shift[0]}


class ToyTexts:
    """Rows (N, 8) as texts of 8 numbers, which are read again as the key `x`; a word that is no number is 0."""

    inputs = ("x",)

    def __init__(self, x: Tensor) -> None:
        self.texts = [" ".join(f"{value:.9g}" for value in row) for row in x.tolist()]

    @property
    def lengths(self) -> np.ndarray:
        """All of one length."""
        return np.ones(len(self.texts), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.texts)

    def collate(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The numbers of the texts asked for (M, 8)."""
        return self.collate_texts(rows, lambda columns: columns)

    def collate_texts(self, rows: np.ndarray, change: Callable[[TextColumns], TextColumns], /) -> dict[str, Tensor]:
        """The same of the texts after a change; the first 8 words count."""
        texts = change({"text": [self.texts[row] for row in rows]})["text"]
        return {"x": torch.tensor([([_number(word) for word in text.split()] + [0.0] * 8)[:8] for text in texts])}


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return 0.0
