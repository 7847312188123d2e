"""What a frozen part of a model computes, once for each example: the prefixes of all stages of a recipe, or a teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from regraft.core.descent import Precision
from regraft.core.forward import called_on
from regraft.core.protocols import Encoded
from regraft.core.values import Batch
from regraft.data.store import Keeping, Store, Wanted, fill
from regraft.data.sweep import evaluating
from regraft.models.tap import Tap, fingerprint, stored_key, tapped


@dataclass
class Made:
    """A store and what it was made of."""

    encoded: Encoded  # held, so that no other examples get their id
    weights: str
    store: Store


class Frozen:
    """The taps of a model, in the order in which stages need them; one pass fills the stores of all that are still to come."""

    def __init__(
        self, model: nn.Module, taps: Sequence[Tap], *, keeping: Keeping, precision: Precision = "fp32"
    ) -> None:
        """Taps of a model.

        Args:
            model: what is tapped; the very module that the stages train the rest of.
            taps: one for each stage.
            keeping: where results are kept, and how many bytes all of them may have together.
            precision: of the passes.
        """
        self.model, self.taps, self.keeping = model, list(taps), keeping
        self.precision: Precision = precision
        self.computed = 0  # examples that passes were run on
        self._made: dict[tuple[int, int], Made] = {}  # (tap, encoded examples) -> its store

    def compute(self, at: int, batch: Batch) -> Batch:
        """The columns of tap `at` for a batch, (N, ...) each, in eval mode and without gradients."""
        with evaluating(self.model, self.precision):
            found = tapped(self.model, [self.taps[at]], called_on(self.model, batch))
        return {name: value.clone() for name, value in found.items()}

    def store(self, at: int, encoded: Encoded) -> Store:
        """What tap `at` gives for all examples, as the weights are now; earlier stages' results are let go."""
        self._made = {key: made for key, made in self._made.items() if key[0] >= at}
        known = self._made.get((at, id(encoded)))
        if known is None or known.weights != fingerprint(self.taps[at].tensors):
            self._fill([n for n in range(at, len(self.taps)) if n == at or (n, id(encoded)) not in self._made], encoded)
        return self._made[at, id(encoded)].store

    def stores(self, at: int) -> list[Store]:
        """The stores of tap `at` that are there, one for each set of examples."""
        return [made.store for (tap, _), made in self._made.items() if tap == at]

    def _fill(self, which: list[int], encoded: Encoded) -> None:
        """Run the model once over all examples for some of the taps."""
        taps = [self.taps[n] for n in which]
        weights = [fingerprint(tap.tensors) for tap in taps]
        data = content_key(encoded) if self.keeping.folder is not None else ""  # only a folder is asked by key
        wanted = [
            Wanted(columns=columns_of(tap), identity=identity_of(tap, now, precision=self.precision, data=data))
            for tap, now in zip(taps, weights, strict=True)
        ]

        def function(own: nn.Module, batch: Batch) -> Batch:
            return tapped(own, taps, called_on(own, batch))

        def count(rows: int) -> None:
            self.computed += rows

        stores = fill(
            self.model, function, encoded, wanted, keeping=self.keeping, precision=self.precision, progress=count
        )
        for n, now, store in zip(which, weights, stores, strict=True):
            self._made[n, id(encoded)] = Made(encoded, now, store)


def identity_of(tap: Tap, weights: str, *, precision: Precision, data: str) -> dict[str, Any]:
    """What decides the results of a tap: weights (their fingerprint), structure, cut, precision and data (its content key)."""
    return {
        "weights": weights,
        "structure": hashlib.sha256(tap.structure.encode()).hexdigest(),
        "cut": [tap.stop, *tap.reads],
        "precision": precision,
        "data": data,
    }


def columns_of(tap: Tap) -> tuple[str, ...]:
    """The names under which a tap's results are stored."""
    return (tap.column, *(stored_key(read) for read in tap.reads))


def content_key(encoded: Encoded) -> str:
    """Hex digest of everything the batches of encoded examples are made of, augmented views included."""
    digest = hashlib.sha256()
    _digest(encoded, digest.update)
    return digest.hexdigest()


def _digest(value: Any, update: Callable[[Any], None]) -> None:
    """Feed a value to a hash: arrays by their bytes, objects by their fields."""
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    if isinstance(array, np.ndarray):
        update(f"{array.dtype}{array.shape}".encode())
        update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    elif isinstance(value, Mapping):
        for name in sorted(value):
            update(str(name).encode())
            _digest(value[name], update)
    elif isinstance(value, str | int | float | bool | tuple | None):
        update(repr(value).encode())
    else:
        update(type(value).__qualname__.encode())
        names = [field.name for field in fields(value) if field.compare] if is_dataclass(value) else sorted(vars(value))
        _digest({name: getattr(value, name) for name in names}, update)
