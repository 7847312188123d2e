"""Frozen features of every block boundary, from one forward pass over the examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from regraft.core.descent import Precision
from regraft.core.forward import called_on
from regraft.data.augment import Augment
from regraft.data.encoded import Encoded
from regraft.data.images import EncodedImages
from regraft.data.sources import look
from regraft.data.sweep import sweep

Read = tuple[int, str]  # a depth and how its output is pooled
Features = dict[Read, Tensor]  # (N, F) each, rows in the order of the encoded examples
LAST: Read = (0, "input")  # the one read of a model that cannot be read at depths


class Readable(Protocol):
    """A model that can be read below its head."""

    def features(self, **inputs: Tensor) -> Tensor:
        """The head's input (N, F)."""
        ...


def all_features(
    model: nn.Module,
    encoded: Encoded,
    *,
    precision: Precision,
    pools: Iterable[str] | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Features:
    """Features of all N examples at every boundary of the model, in fp32.

    Args:
        model: a graft; of another model, what enters its head is read, under the key `LAST`.
        encoded: the examples.
        precision: bf16 runs the forward pass under autocast.
        pools: the ways of pooling wanted; default all.
        progress: called with the number of rows done since the last call.
    """

    def compute(own: nn.Module, batch: dict[str, Tensor]) -> Features:
        inputs = called_on(own, batch)
        read = getattr(own, "all_features", None)
        found = {LAST: cast(Readable, own).features(**inputs)} if read is None else read(pools=pools, **inputs)
        return {key: value.float() for key, value in found.items()}

    return sweep(model, encoded, compute, precision=precision, progress=progress)


def head_features(model: nn.Module, encoded: Encoded, *, precision: Precision) -> Tensor:
    """What enters the model's head for all examples, (N, F) fp32."""

    def compute(own: nn.Module, batch: dict[str, Tensor]) -> Features:
        return {LAST: cast(Readable, own).features(**called_on(own, batch)).float()}

    return sweep(model, encoded, compute, precision=precision)[LAST]


@dataclass(frozen=True)
class AugmentedView:
    """Encoded images as they look in one augmented view: a function of (seed, view, example)."""

    base: EncodedImages
    augment: Augment
    seed: int
    view: int

    @property
    def inputs(self) -> tuple[str, ...]:
        """Those of the images."""
        return self.base.inputs

    @property
    def lengths(self) -> np.ndarray:
        """Those of the images."""
        return self.base.lengths

    def __len__(self) -> int:
        return len(self.base)

    def collate(self, rows: np.ndarray, /) -> dict[str, Tensor]:
        """The images `rows` (M,), augmented."""
        return look(self.base, rows, self.augment, seed=self.seed, view=self.view)


def joined(features: Features, reads: Iterable[Read]) -> Tensor:
    """(N, sum F): the reads side by side, in the order given."""
    parts = [features[read] for read in reads]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def model_outputs(
    model: nn.Module,
    encoded: Encoded,
    *,
    precision: Precision,
    progress: Callable[[int], None] = lambda rows: None,
) -> Tensor:
    """Logits (N, C) of all examples, in eval mode and fp32."""

    def compute(own: nn.Module, batch: dict[str, Tensor]) -> Features:
        return {LAST: own(**called_on(own, batch)).float()}

    return sweep(model, encoded, compute, precision=precision, progress=progress)[LAST]
