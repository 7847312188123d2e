"""A frozen function of an example, moved from the model into the source: computed once per example, then looked up.

a frozen teacher      -> teacher_logits      a new key
a frozen prefix       -> x, hidden           takes an input's place; the model becomes the suffix
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from regraft.core.forward import forward
from regraft.core.protocols import Source, State
from regraft.core.values import Batch
from regraft.errors import Conflict

MASK = "attention_mask"


class MemoryStore:
    """Rows of results by (key, example id), on the CPU, up to a number of bytes; what does not fit is not kept."""

    def __init__(self, max_bytes: int = 2 << 30) -> None:
        """An empty store of at most `max_bytes`."""
        self.max_bytes, self.num_bytes, self.num_refused = max_bytes, 0, 0
        self._rows: dict[str, dict[int, Tensor]] = {}

    def claim(self, key: str) -> None:
        """Take a key for one function.

        Raises:
            Conflict: another function writes it, whose results would be taken for this one's.
        """
        if key in self._rows:
            raise Conflict(
                f"the store already keeps {key!r} of another function; give each Precompute a store of its own"
            )
        self._rows[key] = {}

    def __len__(self) -> int:
        """Number of results kept."""
        return sum(map(len, self._rows.values()))

    def get(self, key: str, example: int) -> Tensor | None:
        """The result of one example, or None."""
        return self._rows[key].get(example)

    def put(self, key: str, example: int, row: Tensor) -> None:
        """Keep a copy of one result if it fits; else count it as refused."""
        if self.num_bytes + row.nbytes > self.max_bytes:
            self.num_refused += 1
            return
        # a clone, because a view of one row would keep the whole batch alive
        self._rows[key][example] = row.detach().to("cpu", copy=True)
        self.num_bytes += row.nbytes


class Precompute(Source):
    """`source` with the output of a frozen `function` added to each batch, kept per example id if the source is repeatable.

    A source that is not repeatable has the function computed on every batch. `computed` counts the examples it was run on.
    """

    def __init__(
        self,
        source: Source,
        function: nn.Module,
        writes: Mapping[str, str],
        *,
        store: MemoryStore,
        ragged: bool = False,
    ) -> None:
        """Add what `function` gives.

        Args:
            source: yields the inputs that `function` declares (`x` if it declares none).
            function: called on the batch without gradient and in eval mode; gives one tensor with a row per example.
            writes: an input key of the source, which says whose examples are meant -> the key to write, such as {"x":
                "teacher_logits"} or {"input_ids": "hidden", "target_input_ids": "target_hidden"}.
            store: where results are kept; its own for each Precompute.
            ragged: results are (N, L, ...) with one entry per token; they are stored without the padding after
                `attention_mask` ends, and padded with zeros to the longest of the batch when drawn.
        """
        unknown = [key for key in writes if key not in source.inputs]
        if unknown:
            raise Conflict(f"Precompute reads {unknown}, but the source yields {sorted(source.inputs)}")
        self.source, self.function, self.writes, self.store = source, function, dict(writes), store
        self.ragged, self.computed = ragged, 0
        for key in self.writes.values():
            store.claim(key)

    @property
    def repeatable(self) -> bool:
        """As the source is."""
        return self.source.repeatable

    @property
    def inputs(self) -> Mapping[str, str]:
        """As the source's."""
        return self.source.inputs

    def batches(self, model: nn.Module, start: int = 0, /) -> Iterator[Batch]:
        """The source's batches with the results added."""
        for batch in self.source.batches(model, start):
            yield batch | {new: self._result(self.source.inputs[old], new, batch) for old, new in self.writes.items()}

    def _result(self, id_key: str, key: str, batch: Batch) -> Tensor:
        """Results (N, ...) for the examples that `id_key` identifies; (T, N, ...) where ids are (T, N), as in tasks."""
        role, ids = id_key.removesuffix("id"), batch[id_key]
        inputs = {
            name: batch[name].flatten(0, ids.ndim - 1)
            for name, identifier in self.inputs.items()
            if identifier == id_key
        }
        rows = self._rows(role, key, inputs, ids.flatten().tolist())
        return rows.unflatten(0, ids.shape) if ids.ndim > 1 else rows

    def _rows(self, role: str, key: str, inputs: Batch, ids: list[int]) -> Tensor:
        """Results (N, ...) for flat inputs, computing those not yet kept."""
        if not self.repeatable:
            return self._compute(role, inputs)
        kept = {example: self.store.get(key, example) for example in ids}
        first = {example: row for row, example in reversed(list(enumerate(ids)))}
        missing = sorted(row for example, row in first.items() if kept[example] is None)
        device = next(iter(inputs.values())).device
        if missing:
            part = {name: value[missing] for name, value in inputs.items()}
            for row, result in zip(missing, self._trimmed(self._compute(role, part), role, part), strict=True):
                self.store.put(key, ids[row], result)
                kept[ids[row]] = result
            device = result.device
        results = [row.to(device) for example in ids if (row := kept[example]) is not None]
        if not self.ragged:
            return torch.stack(results)
        length = inputs[role + MASK].shape[1]
        out = results[0].new_zeros((len(results), length, *results[0].shape[1:]))
        for i, row in enumerate(results):
            out[i, : len(row)] = row
        return out

    def _compute(self, role: str, inputs: Batch) -> Tensor:
        """Output of the function, (N, ...), without gradient and in eval mode."""
        with torch.no_grad(), evaluating(self.function):
            out = forward(self.function, inputs, role)
        num = len(next(iter(inputs.values())))
        if len(out) != num:
            raise Conflict(
                f"Precompute: the function must give a row per example, got {tuple(out.shape)} for {num} examples"
            )
        if self.ragged and (out.ndim < 2 or out.shape[1] != inputs[role + MASK].shape[1]):
            raise Conflict(f"Precompute: ragged results must be (N, L, ...) like {role + MASK}, got {tuple(out.shape)}")
        self.computed += num
        return out

    def _trimmed(self, out: Tensor, role: str, inputs: Batch) -> list[Tensor]:
        """One result per example, without its padding."""
        if not self.ragged:
            return list(out)
        lengths = inputs[role + MASK].sum(1).tolist()
        return [row[:length] for row, length in zip(out, lengths, strict=True)]

    def state_dict(self) -> State:
        """The inner source's; results can be computed again."""
        return self.source.state_dict()

    def load_state_dict(self, state: State, /) -> None:
        """Hand it to the inner source."""
        self.source.load_state_dict(state)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Every submodule in eval mode inside, and in the mode it was in after."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
