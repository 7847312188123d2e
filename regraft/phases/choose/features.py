"""Frozen features of every block boundary, from one forward pass over the examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.core.descent import Precision
from regraft.core.forward import called_on
from regraft.data.augment import Augment
from regraft.data.encoded import Encoded
from regraft.data.images import EncodedImages
from regraft.data.sources import look
from regraft.data.store import Keeping, Wanted, fill
from regraft.data.sweep import sweep
from regraft.models.frozen import content_key, identity_of
from regraft.models.graft import Graft
from regraft.models.tap import Tap, fingerprint, stored_key, structure_of, tensors_of

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
    reads: Iterable[Read] | None = None,
    keeping: Keeping | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Features:
    """Features of all N examples at every boundary of the model, in fp32.

    Args:
        model: a graft; of another model, what enters its head is read, under the key `LAST`.
        encoded: the examples.
        precision: bf16 runs the forward pass under autocast.
        pools: the ways of pooling wanted; default all.
        reads: the boundaries and their pooling, where not all are wanted.
        keeping: a folder from which features are taken that an earlier run has left there, and where these are left for a
            later one, if they fit; in bf16 if it says so. Default: they are computed.
        progress: called with the number of rows done since the last call.
    """
    compute = _compute(pools, reads)
    if keeping is None or not isinstance(model, Graft):
        return sweep(model, encoded, compute, precision=precision, progress=progress)
    wanted = None if reads is None else set(reads)
    widths = {read: width for read, width in model.all_reads(pools).items() if wanted is None or read in wanted}
    if (2 if keeping.half else 4) * len(encoded) * sum(widths.values()) > keeping.max_bytes:
        return sweep(model, encoded, compute, precision=precision, progress=progress)

    def named(own: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {stored_key(read): value for read, value in compute(own, batch).items()}

    names = {stored_key(read): read for read in widths}
    structure = f"packed {model.packing is not None} {structure_of({'backbone': model.backbone})}"
    tap = Tap("head", (), tensors_of([model.backbone]), structure)
    identity = identity_of(tap, fingerprint(tap.tensors), precision=precision, data=content_key(encoded))
    store = fill(
        model, named, encoded, [Wanted(columns=tuple(names), identity=identity)],
        keeping=keeping, precision=precision, progress=progress,
    )[0]  # fmt: skip
    return {read: store.columns[name].values for name, read in names.items()}


def _compute(
    pools: Iterable[str] | None, reads: Iterable[Read] | None
) -> Callable[[nn.Module, dict[str, Tensor]], Features]:
    """What is read of a model (or a copy of it) on a batch, in fp32."""
    ways, wanted = None if pools is None else sorted(set(pools)), None if reads is None else set(reads)

    def compute(own: nn.Module, batch: dict[str, Tensor]) -> Features:
        inputs = called_on(own, batch)
        read = getattr(own, "all_features", None)
        found = {LAST: cast(Readable, own).features(**inputs)} if read is None else read(pools=ways, **inputs)
        return {key: value.float() for key, value in found.items() if wanted is None or key in wanted}

    return compute


def head_outputs(
    model: nn.Module,
    encoded: Encoded,
    heads: Mapping[str, tuple[Sequence[Read], Tensor, Tensor]],
    *,
    precision: Precision,
    progress: Callable[[int], None] = lambda rows: None,
) -> dict[str, Tensor]:
    """Logits (N, C) of several linear heads on one model, by the head's name; no features are kept.

    Args:
        model: as `all_features` has it.
        encoded: the N examples.
        heads: of each what it reads (F features), its weight (C, F) and its bias (C,).
        precision: of the model's forward pass; the heads are fp32.
        progress: called with the number of rows done since the last call.
    """
    reads = dict.fromkeys(read for each, _, _ in heads.values() for read in each)
    read = _compute(None if LAST in reads else {pool for _, pool in reads}, reads)

    def compute(own: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        found = read(own, batch)
        with torch.autocast("cpu", enabled=False):
            return {name: F.linear(joined(found, each), weight, bias) for name, (each, weight, bias) in heads.items()}

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
