"""Results of a frozen function for all examples: in memory or in memory-mapped files, without padding, in fp32 or bf16.

A store in a folder is made beside its place and renamed to it when it is whole. It says there what made it; a folder that says
anything else than what is asked for, or whose bytes have changed, is an error and never an answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regraft.core.descent import Precision
from regraft.core.protocols import Encoded
from regraft.core.values import Batch
from regraft.data.cache import key_of, trim
from regraft.data.sweep import each_batch, evaluating
from regraft.errors import RunError

MASK = "attention_mask"
NOTES = "store.json"
FORMAT = 1  # of the folder; raise it when the same results would be stored differently
HALVED = (torch.float32, torch.float64)  # types that a bf16 store makes smaller
Function = Callable[[nn.Module, Batch], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Column:
    """One result of the first K examples."""

    values: Tensor  # (K, ...) an entry an example; ragged: (T, ...) an entry a token, one example after the other
    dtype: torch.dtype  # of the results; `values` may be stored in bf16
    starts: np.ndarray | None = None  # (K + 1,) int64 where each example starts among the tokens of a ragged result

    def rows(self, ids: np.ndarray, length: int | None = None) -> Tensor:
        """Results (M, ...) of examples `ids` (M,); ragged ones (M, length, ...), zero after each example's end."""
        if self.starts is None:
            return self.values[torch.from_numpy(ids)].to(self.dtype)
        lengths = self.starts[ids + 1] - self.starts[ids]
        longest = int(lengths.max(initial=0)) if length is None else length
        before = np.cumsum(lengths) - lengths
        tokens = np.repeat(self.starts[ids] - before, lengths) + np.arange(int(lengths.sum()))
        places = np.repeat(np.arange(len(ids)) * longest - before, lengths) + np.arange(len(tokens))
        out = torch.zeros(len(ids) * longest, *self.values.shape[1:], dtype=self.dtype)
        out[torch.from_numpy(places)] = self.values[torch.from_numpy(tokens)].to(self.dtype)
        return out.unflatten(0, (len(ids), longest))


@dataclass(frozen=True)
class Store:
    """Columns of the first `kept` examples of an encoded split, and what storing them in a smaller type cost."""

    columns: Mapping[str, Column]
    kept: int
    rounding: float = 0.0  # largest error of a stored value, as a share of its column's largest value
    place: Path | None = None  # the folder it is mapped from; None: in memory

    @property
    def num_bytes(self) -> int:
        """Bytes of all values."""
        return sum(column.values.nbytes for column in self.columns.values())


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Where and how results are kept."""

    max_bytes: int
    half: bool = False  # in bf16
    folder: Path | None = None  # memory-mapped files in here; None: in memory


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A store to be made: some of the results of a pass, and what decides them."""

    columns: tuple[str, ...]
    identity: Mapping[str, Any] = field(default_factory=dict[str, Any])


def fill(
    model: nn.Module,
    function: Function,
    encoded: Encoded,
    wanted: Sequence[Wanted],
    *,
    keeping: Keeping,
    precision: Precision,
    progress: Callable[[int], None] = lambda rows: None,
) -> list[Store]:
    """The results of a function for the first examples, as many as fit, all from one pass; a store for each of `wanted`.

    Args:
        model: the function's first argument; run in eval mode and without gradients, and left as it was.
        function: from the model and a batch (M examples), named tensors (M, ...); those with an entry a token of a batch with an
            attention mask, (M, L, ...), are stored without padding.
        encoded: the examples.
        wanted: the stores. In a folder a store is opened instead if it is there.
        keeping: where, in which type, and how many bytes they may have together.
        precision: of the pass.
        progress: called with the number of rows done since the last call.

    Raises:
        RunError: the folder holds a store that something else made, or that is damaged. Where it cannot be written, the stores
            are in memory; their `place` says so.
    """
    sample = _sample(model, function, encoded, precision)
    kept = _fitting(sample, wanted, encoded.lengths, keeping)
    places = [_place(each, kept, keeping) for each in wanted]
    stores = {
        n: open_store(p.final, p.identity) for n, p in enumerate(places) if p.final is not None and p.final.exists()
    }
    missing = [n for n in range(len(wanted)) if n not in stores]
    if not missing:
        return [stores[n] for n in range(len(wanted))]
    sizes = encoded.lengths[:kept]
    try:
        fillings = {
            n: Filling.begin(sample, wanted[n].columns, sizes, half=keeping.half, folder=places[n].beside)
            for n in missing
        }

        def keep(rows: np.ndarray, batch: Batch, found: Mapping[str, Tensor]) -> None:
            for filling in fillings.values():
                filling.put(rows, batch, found)
            progress(len(rows))

        each_batch(model, encoded, function, keep, precision=precision, rows=np.arange(kept))
        for n, filling in fillings.items():
            made = Store(filling.columns, kept, filling.rounding)
            stores[n] = _published(made, places[n]) if filling.mapped else made
    finally:
        for place in places:
            if place.beside is not None:
                shutil.rmtree(place.beside, ignore_errors=True)
    return [stores[n] for n in range(len(wanted))]


@dataclass(frozen=True)
class Place:
    """Where a store is kept: made in `beside`, then renamed; in memory where both are None."""

    identity: Mapping[str, Any]
    final: Path | None
    beside: Path | None


def _place(wanted: Wanted, kept: int, keeping: Keeping) -> Place:
    """The place of a store of `kept` examples; its name is made of everything that decides what is in it."""
    kind = {"columns": wanted.columns, "kept": kept, "half": keeping.half}
    machine = {"torch": torch.__version__, "processor": torch.backends.cpu.get_cpu_capability()}  # type: ignore[attr-defined]
    identity = {**wanted.identity, **kind, **machine}
    if keeping.folder is None:
        return Place(identity, None, None)
    final = keeping.folder / key_of(FORMAT, identity)
    return Place(identity, final, final.with_name(f"{final.name}.part-{os.getpid()}"))


@dataclass(frozen=True)
class Sample:
    """The results of a few examples: names, shapes and types of all."""

    found: Mapping[str, Tensor]
    ragged: frozenset[str]

    def bytes_of(self, name: str, half: bool) -> int:
        """Bytes of one example's result, or of one token's."""
        value = self.found[name]
        entry = value[0, 0] if name in self.ragged else value[0]
        return entry.numel() * (2 if half and value.dtype in HALVED else value.element_size())


def _sample(model: nn.Module, function: Function, encoded: Encoded, precision: Precision) -> Sample:
    batch = encoded.collate(np.arange(min(2, len(encoded))))
    with evaluating(model, precision):
        found = function(model, batch)
    num = len(next(iter(batch.values())))
    for name, value in found.items():
        if value.ndim == 0 or len(value) != num:
            raise ValueError(f"{name} must have a row for each of {num} examples, got {tuple(value.shape)}")
    return Sample(found, frozenset(name for name, value in found.items() if is_ragged(value, batch)))


def is_ragged(value: Tensor, batch: Batch) -> bool:
    """Has the result an entry for each token, (M, L, ...)?"""
    return MASK in batch and value.ndim > 2 and value.shape[:2] == batch[MASK].shape


def unpadded(value: Tensor, batch: Batch) -> Tensor:
    """A result as it comes back from a store: zero where a ragged one has no token."""
    if not is_ragged(value, batch):
        return value
    return value * batch[MASK].bool().reshape(*batch[MASK].shape, *(1,) * (value.ndim - 2))


def _fitting(sample: Sample, wanted: Sequence[Wanted], lengths: np.ndarray, keeping: Keeping) -> int:
    """How many of the first examples fit into the bytes allowed for all stores."""
    names = [name for each in wanted for name in each.columns]
    token = sum(sample.bytes_of(name, keeping.half) for name in names if name in sample.ragged)
    example = sum(sample.bytes_of(name, keeping.half) for name in names if name not in sample.ragged)
    needed = np.cumsum(lengths.astype(np.int64) * token + example)
    return int(np.searchsorted(needed, keeping.max_bytes, side="right"))


@dataclass
class Filling:
    """Columns on their way to being full."""

    columns: dict[str, Column]
    mapped: bool  # in files
    rounding: float = 0.0
    largest: dict[str, float] = field(default_factory=dict[str, float])

    @classmethod
    def begin(
        cls, sample: Sample, names: Sequence[str], lengths: np.ndarray, *, half: bool, folder: Path | None
    ) -> Filling:
        """Empty columns for some of the results of examples of these lengths (K,); in memory where the folder has no room."""
        starts = np.append(0, np.cumsum(lengths, dtype=np.int64))
        try:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
            made: dict[str, Column] = {}
            for number, name in enumerate(names):
                value, ragged = sample.found[name], name in sample.ragged
                shape = (int(starts[-1]), *value.shape[2:]) if ragged else (len(lengths), *value.shape[1:])
                dtype = torch.bfloat16 if half and value.dtype in HALVED else value.dtype
                file = None if folder is None else folder / f"{number}.bin"
                made[name] = Column(_empty(shape, dtype, file), value.dtype, starts if ragged else None)
        except OSError:
            if folder is None:
                raise
            shutil.rmtree(folder, ignore_errors=True)
            return cls.begin(sample, names, lengths, half=half, folder=None)
        return cls(made, mapped=folder is not None)

    def put(self, rows: np.ndarray, batch: Batch, found: Mapping[str, Tensor]) -> None:
        """Keep the results of a batch of examples `rows` (M,)."""
        for name, column in self.columns.items():
            value = found[name]
            if column.starts is None:
                index = torch.from_numpy(rows)
            else:
                mask = batch[MASK].bool()
                lengths = column.starts[rows + 1] - column.starts[rows]
                before = np.cumsum(lengths) - lengths
                index = torch.from_numpy(
                    np.repeat(column.starts[rows] - before, lengths) + np.arange(int(lengths.sum()))
                )
                value = value[mask]
            stored = value.to(column.values.dtype)
            if column.values.dtype != column.dtype:
                self.largest[name] = max(self.largest.get(name, 1e-30), float(value.abs().max()))
                off = float((stored.to(value.dtype) - value).abs().max())
                self.rounding = max(self.rounding, off / self.largest[name])
            column.values.index_copy_(0, index, stored)


def _empty(shape: Sequence[int], dtype: torch.dtype, file: Path | None) -> Tensor:
    """Room for values: in memory, or mapped from a file that is made as long as they are."""
    count = int(np.prod(shape))
    if file is None or count == 0:
        if file is not None:
            file.touch()
        return torch.empty(*shape, dtype=dtype)
    with file.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, count * dtype.itemsize)  # a full disk is met here, not at a later write
    return torch.from_file(str(file), shared=True, size=count, dtype=dtype).reshape(tuple(shape))


# ---- folders


def _published(store: Store, place: Place) -> Store:
    """Write what the store is and move it to its place, if it has one; where another process was faster, its store stays."""
    beside, final = place.beside, place.final
    if beside is None or final is None:
        return store
    columns = {
        name: {
            "file": f"{number}.bin",
            "shape": list(column.values.shape),
            "stored": str(column.values.dtype).removeprefix("torch."),
            "dtype": str(column.dtype).removeprefix("torch."),
            "sha256": _sha256(beside / f"{number}.bin"),
        }
        for number, (name, column) in enumerate(store.columns.items())
    }
    starts = next((column.starts for column in store.columns.values() if column.starts is not None), None)
    if starts is not None:
        np.save(beside / "starts.npy", starts)
    ragged = [name for name, column in store.columns.items() if column.starts is not None]
    notes = {
        "identity": _plain(place.identity), "columns": columns, "ragged": ragged, "kept": store.kept, "rounding": store.rounding,
        "starts": _sha256(beside / "starts.npy") if ragged else "",
    }  # fmt: skip
    try:
        (beside / NOTES).write_text(json.dumps(notes, indent=1), encoding="utf-8")
        if not final.exists():
            beside.rename(final)
        trim(final.parent)
    except OSError:
        return store  # its files are mapped, so it can be used although it cannot be found again
    return replace(store, place=final)


def open_store(place: Path, identity: Mapping[str, Any]) -> Store:
    """The store in a folder, mapped.

    Raises:
        RunError: something else made it, or its bytes are not those that were written.
    """
    cure = "remove the folder, or all stores with `regraft cache clear stores`"
    try:
        notes = json.loads((place / NOTES).read_text(encoding="utf-8"))
        made_by = notes["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(f"the store {place} has no readable {NOTES}; {cure}") from None
    if made_by != _plain(identity):
        differ = sorted(key for key in {*made_by, *identity} if made_by.get(key) != _plain(identity).get(key))
        raise RunError(f"the store {place} was made by other results (they differ in {', '.join(differ)}); {cure}")
    os.utime(place)  # the eldest are the first to go when the cache grows too large
    starts = None
    if notes["ragged"]:
        _require_bytes(place / "starts.npy", notes["starts"], cure)
        starts = np.load(place / "starts.npy")
    columns: dict[str, Column] = {}
    for name, about in notes["columns"].items():
        file, dtype = place / about["file"], getattr(torch, about["stored"])
        _require_bytes(file, about["sha256"], cure)
        count = int(np.prod(about["shape"]))
        values = torch.from_file(str(file), size=count, dtype=dtype) if count else torch.empty(0, dtype=dtype)
        columns[name] = Column(
            values.reshape(about["shape"]), getattr(torch, about["dtype"]), starts if name in notes["ragged"] else None
        )
    return Store(columns, int(notes["kept"]), float(notes["rounding"]), place)


def _require_bytes(file: Path, digest: str, cure: str) -> None:
    try:
        same = _sha256(file) == digest
    except OSError:
        same = False
    if not same:
        raise RunError(f"the store's file {file} is damaged or missing; {cure}")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON."""
    return json.loads(json.dumps(dict(identity), default=str))
