"""A frozen function of an example, moved from the model into the source: computed once per example, then looked up.

a frozen teacher      -> teacher_logits      a new key
a frozen prefix       -> x, hidden           takes an input's place; the model becomes the suffix
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from regraft.core.protocols import Encoded, Source, SourceWrapper
from regraft.core.values import Batch
from regraft.data.store import MASK, Store, unpadded
from regraft.errors import Conflict
from regraft.models.frozen import Frozen


class Precompute(SourceWrapper):
    """`base` with columns of a frozen part of a model added to each batch.

    Results of examples that look the same each time come from a store, which one pass over all of them fills when the first
    batch is asked for; those that do not fit, and those of examples that look new each time, are computed batch by batch.
    """

    def __init__(
        self,
        base: Source,
        frozen: Frozen,
        *,
        at: int = 0,
        reads: str,
        writes: Mapping[str, str],
        roles: Sequence[str] = ("",),
    ) -> None:
        """Add what a tap gives.

        Args:
            base: yields what the frozen model is called on.
            frozen: computes and keeps the columns.
            at: which of its taps.
            reads: an input of the model, which says whose examples are meant.
            writes: column of the tap -> batch key, such as {"output": "teacher_logits"}.
            roles: what stands before all of these keys: "" for the examples themselves, `target_`, `support_`, ...

        Raises:
            Conflict: the source does not yield what is read.
        """
        unknown = [role + reads for role in roles if role + reads not in base.inputs]
        if unknown:
            raise Conflict(f"Precompute reads {unknown}, but the source yields {sorted(base.inputs)}")
        super().__init__(base)
        self.frozen, self.at, self.writes = frozen, at, dict(writes)
        self.ids = {role: base.inputs[role + reads] for role in roles}

    @property
    def examples(self) -> Mapping[str, Encoded]:
        """As the source's; none of those whose inputs have been replaced here."""
        replaced = {self.ids[role] for role in self.ids for key in self.writes.values() if role + key in self.inputs}
        return {key: encoded for key, encoded in self.base.examples.items() if key not in replaced}

    @property
    def computed(self) -> int:
        """Number of examples that a pass of the frozen part was run on."""
        return self.frozen.computed

    def batches(self, model: nn.Module, start: int = 0, /) -> Iterator[Batch]:
        """The source's batches with the results added; a store that other weights made is made anew."""
        offered = self.base.examples
        stores = {role: self.frozen.store(self.at, offered[key]) for role, key in self.ids.items() if key in offered}
        for batch in self.base.batches(model, start):
            added = Batch()
            for role, key in self.ids.items():
                added |= self._columns(role, batch[key], batch, stores.get(role))
            yield batch | added

    def _columns(self, role: str, ids: Tensor, batch: Batch, store: Store | None) -> Batch:
        """Results for the examples `ids` (N,) under their batch keys; (T, N, ...) where ids are (T, N), as in tasks."""
        flat = {
            name.removeprefix(role): batch[name].flatten(0, ids.ndim - 1)
            for name, key in self.inputs.items()
            if key == self.ids[role] and name.startswith(role)
        }
        found = self._rows(ids.flatten().numpy(), flat, store)
        named = {role + self.writes[column]: value for column, value in found.items()}
        return {key: value.unflatten(0, ids.shape) if ids.ndim > 1 else value for key, value in named.items()}

    def _rows(self, ids: np.ndarray, inputs: Batch, store: Store | None) -> Batch:
        """Columns (N, ...) of flat examples, looked up as far as they are kept."""
        if store is None:
            return self._computed(inputs)
        kept = ids < store.kept
        length = inputs[MASK].shape[1] if MASK in inputs else None
        if kept.all():
            return {name: column.rows(ids, length) for name, column in store.columns.items()}
        rest = torch.from_numpy(~kept)
        out = self._computed({name: value[rest] for name, value in inputs.items()})
        for name, column in store.columns.items():
            whole = out[name].new_empty((len(ids), *out[name].shape[1:]))
            whole[rest] = out[name]
            if kept.any():
                whole[~rest] = column.rows(ids[kept], length)
            out[name] = whole
        return out

    def _computed(self, inputs: Batch) -> Batch:
        """Columns of flat examples, computed now, in the form in which a store gives them."""
        out = self.frozen.compute(self.at, inputs)
        self.frozen.computed += len(next(iter(inputs.values())))
        return {name: unpadded(value, inputs) for name, value in out.items()}
