"""Frozen features of every block boundary, from one forward pass over the examples."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from regraft.core.descent import Precision
from regraft.core.forward import inputs_of
from regraft.core.modes import eval_mode
from regraft.data.augment import Augment, uniforms
from regraft.data.encoded import Encoded
from regraft.data.images import EncodedImages
from regraft.data.sources import in_order

Read = tuple[int, str]  # a depth and how its output is pooled
Features = dict[Read, Tensor]  # (N, F) each, rows in the order of the encoded examples
LAST: Read = (0, "input")  # the one read of a model that cannot be read at depths


MOST_EXAMPLES, MOST_TOKENS = (
    32,
    512,
)  # of a batch: measured on CPUs, larger ones leave the cache and are up to twice as slow


@contextmanager
def evaluating(model: nn.Module, precision: Precision) -> Generator[None]:
    """Eval mode, no gradients, and one autocast for the whole block, so that weights are cast once and not for every batch."""
    half = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")
    with eval_mode(model), torch.inference_mode(), half:
        yield


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
    read = getattr(model, "all_features", None)

    def one(inputs: dict[str, Tensor]) -> Features:
        if read is not None:
            return read(pools=pools, **inputs)
        return {LAST: cast(Readable, model).features(**inputs)}

    out: Features = {}
    with evaluating(model, precision):
        for rows, batch in in_order(encoded, max_tokens=MOST_TOKENS, batch_size=MOST_EXAMPLES):
            found = one({key: batch[key] for key in inputs_of(model)})
            index = torch.from_numpy(np.asarray(rows))
            for key, value in found.items():
                if key not in out:
                    out[key] = plain_empty(len(encoded), value.shape[1])
                out[key][index] = value.float()
            progress(len(rows))
    return out


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
        draws = uniforms(self.seed, rows + self.view * len(self.base))
        return self.base.collate_changed(rows, lambda pixels: self.augment.apply(pixels, draws))


def plain_empty(rows: int, columns: int) -> Tensor:
    """An ordinary tensor, also when it is made in inference mode: it will be used outside."""
    with torch.inference_mode(False):
        return torch.empty(rows, columns)


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
    out: Tensor | None = None
    with evaluating(model, precision):
        for rows, batch in in_order(encoded, max_tokens=MOST_TOKENS, batch_size=MOST_EXAMPLES):
            logits = model(**{key: batch[key] for key in inputs_of(model)})
            if out is None:
                out = plain_empty(len(encoded), logits.shape[1])
            out[torch.from_numpy(np.asarray(rows))] = logits.float()
            progress(len(rows))
    if out is None:
        raise ValueError("model_outputs needs at least one example")
    return out
