"""Rows of eight numbers shown as pictures and as texts: toy data on which one small network can train whatever it is shown."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from regraft.data.text import TextColumns


class Rows:
    """Encoded examples that are rows of one tensor, under the key `x`."""

    inputs = ("x",)

    def __init__(self, x: Tensor) -> None:
        self.x = x

    @property
    def lengths(self) -> np.ndarray:
        """All of one length."""
        return np.ones(len(self.x), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.x)

    def collate(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The rows asked for."""
        return {"x": self.x[torch.from_numpy(rows)]}


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


class ToySounds:
    """Rows (N, 8) as sounds of eight steps, which are read again as the key `x`: the mean of each eighth."""

    inputs = ("x",)

    def __init__(self, x: Tensor) -> None:
        self.steps = x

    @property
    def lengths(self) -> np.ndarray:
        """All of one length."""
        return np.ones(len(self.steps), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.steps)

    def collate(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The heights of the steps of the sounds asked for (M, 8)."""
        return self.collate_waves(rows, lambda waves: waves)

    def collate_waves(self, rows: np.ndarray, change: Callable[[list[Tensor]], list[Tensor]], /) -> dict[str, Tensor]:
        """The same of the sounds after a change."""
        waves = change([one.repeat_interleave(128) for one in self.steps[torch.from_numpy(rows)]])
        return {"x": torch.stack([torch.nn.functional.adaptive_avg_pool1d(one[None], 8)[0] for one in waves])}


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return 0.0
