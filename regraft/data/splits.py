"""Which rows are for validation and for the final test where the data does not say: stratified, grouped or by time.

Everything here is positions in a table and a seed; a group, or rows with one and the same input, never stand on both sides.
"""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)
from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from regraft.errors import DataError

FEWEST = 2  # examples of a class that a cut takes at least, where the class has twice as many left


def cut(labels: np.ndarray, units: np.ndarray | None, *, share: float, seed: int) -> np.ndarray:
    """(N,) bool: about `share` of the rows of each class, whole units only, chosen by `seed`.

    `labels` (N,) int64 are strata; rows of stratum -1 are never taken. Rows with one value of `units` (N,) int64 stay
    together, in the stratum of the first of them (None: each row is a unit). A class keeps at least half of its units, so
    a single one stays whole.
    """
    if units is None:
        return _taken(labels, None, share=share, seed=seed)
    _, first, inverse, sizes = np.unique(units, return_index=True, return_inverse=True, return_counts=True)
    return _taken(labels[first], sizes, share=share, seed=seed)[inverse]


def fold_numbers(labels: np.ndarray, units: np.ndarray | None, folds: int, seed: int) -> np.ndarray:
    """(N,) int64 fold of each row, 0 .. folds - 1: whole units, each class spread evenly; -1 for rows of stratum -1.

    `labels` and `units` as in `cut`.
    """
    first, inverse = np.arange(len(labels)), np.arange(len(labels))
    if units is not None:
        _, first, inverse = np.unique(units, return_index=True, return_inverse=True)
    strata = labels[first]
    order = np.random.default_rng(seed).permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    order = order[strata[order] >= 0]
    number = np.full(len(strata), -1, np.int64)
    number[order] = np.arange(len(order)) % folds
    return number[inverse]


def _taken(strata: np.ndarray, sizes: np.ndarray | None, *, share: float, seed: int) -> np.ndarray:
    """(U,) bool over units of the given `strata` and `sizes` (None: all 1), in one random order, class by class."""
    order = np.random.default_rng(seed).permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    ends = np.flatnonzero(np.diff(strata[order])) + 1
    taken = np.zeros(len(strata), bool)
    for start, end in zip([0, *ends.tolist()], [*ends.tolist(), len(order)], strict=True):
        if start == end or strata[order[start]] < 0:
            continue
        at_most = (end - start) // 2
        members = order[start:end]
        if sizes is None:
            taken[members[: min(at_most, max(round((end - start) * share), FEWEST))]] = True
            continue
        wanted = max(round(int(sizes[members].sum()) * share), FEWEST)
        members = members[sizes[members] <= wanted]  # a huge unit stays in training
        # a unit is taken when the larger part of it lies below the wanted number
        middle = np.cumsum(sizes[members]) - sizes[members] / 2
        taken[members[middle <= wanted][:at_most]] = True
    return taken


def cut_late(times: np.ndarray, *, share: float) -> np.ndarray:
    """(N,) bool: the latest `share` of the rows; rows of one moment stay together. `times` (N,) float64, NaN is earliest."""
    times = np.where(np.isnan(times), -np.inf, times)
    ordered = np.sort(times)
    first = len(times) - max(1, round(len(times) * share))
    threshold = ordered[first]
    if threshold == ordered[0]:
        later = ordered[ordered > threshold]
        if not len(later):
            raise DataError("all rows have one and the same time, so they cannot be split by it; leave out --time")
        threshold = later[0]
    return times >= threshold


def limited(labels: np.ndarray, *, limit: int, seed: int) -> np.ndarray:
    """(M,) ascending positions of a sample of `limit` rows in which each class keeps its share, at least one row if it fits."""
    if limit >= len(labels):
        return np.arange(len(labels))
    order = np.lexsort((np.random.default_rng(seed).random(len(labels)), labels))
    counts = np.unique(labels, return_counts=True)[1]
    ideal = counts * (limit / len(labels))
    quota = (
        np.minimum(np.maximum(np.floor(ideal).astype(np.int64), 1), counts)
        if limit >= len(counts)
        else np.floor(ideal).astype(np.int64)
    )
    while quota.sum() > limit:
        quota[np.argmax(np.where(quota > 1, quota - ideal, -np.inf))] -= 1
    while quota.sum() < limit:
        room = np.where(quota < counts, ideal - quota, -np.inf)
        quota[np.argmax(room)] += 1
    starts = np.cumsum(counts) - counts
    rank = np.arange(len(labels)) - np.repeat(starts, counts)
    return np.sort(order[rank < np.repeat(quota, counts)])


def strata_of(targets: np.ndarray, *, num_rows: int) -> np.ndarray:
    """(N,) int64 stratum of each row: its class, the tenth its value falls in, or its rarest label; -1 where missing."""
    if targets.ndim == 2:
        rarity = np.where(targets > 0, targets.sum(0)[None, :], np.inf)
        return np.where(targets.any(1), rarity.argmin(1), targets.shape[1]).astype(np.int64)
    if targets.dtype.kind == "f":
        known = np.isfinite(targets)
        if not known.any():
            return np.full(num_rows, -1, np.int64)
        edges = np.quantile(targets[known], np.linspace(0.1, 0.9, 9))
        return np.where(known, np.searchsorted(edges, targets), -1).astype(np.int64)
    return targets


def units_of_group(column: pa.ChunkedArray) -> np.ndarray | None:
    """(N,) int64: for each row the first row with its group; a row without a group is a unit of its own. None: all are."""
    encoded = pc.dictionary_encode(column).combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0)
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return _leaders(np.where(codes < 0, -1 - np.arange(len(codes)), codes))


def units_of_inputs(batches: Iterable[pa.RecordBatch]) -> np.ndarray | None:
    """(N,) int64: for each row the first row with the same inputs; a row without any is a unit of its own. None: all are.

    Text is compared without regard to case and to the amount of white space. Rows are told apart by a 64-bit hash that
    never leaves this process, so only equality counts and the result does not depend on it.
    """
    parts = [_hashes(batch) for batch in batches]
    if not parts:
        return None
    hashes, known = (np.concatenate(part) for part in zip(*parts, strict=True))
    leaders = _leaders(hashes)
    return None if leaders is None else np.where(known, leaders, np.arange(len(hashes)))


def normalised(texts: pa.Array) -> pa.Array:
    """Texts in lower case with single spaces: what counts as the same text."""
    return pc.binary_join(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(pc.utf8_lower(texts))), " ")


def _hashes(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """((n,) int64 hash of all columns of each row, (n,) bool whether the row has any value)."""
    total, known = np.zeros(batch.num_rows, np.int64), np.zeros(batch.num_rows, bool)
    for column in batch.columns:
        if pa.types.is_string(column.type):
            column = normalised(pc.fill_null(column, ""))
            values = column.to_numpy(zero_copy_only=False)
            known |= pc.greater(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
        elif pa.types.is_struct(column.type):
            values = [value and (value.get("bytes") or value.get("path")) for value in column.to_pylist()]
            known |= np.array([bool(value) for value in values])
        else:
            values = column.to_numpy(zero_copy_only=False)
            known |= column.is_valid().to_numpy(zero_copy_only=False)
        codes = np.fromiter(map(hash, values), np.int64, len(values))
        total = total * 1_000_003 ^ codes
    return total, known


def _leaders(keys: np.ndarray) -> np.ndarray | None:
    """(N,) int64: for each entry the position of the first one that is equal to it; None where no two are equal."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    new = np.r_[True, ordered[1:] != ordered[:-1]]
    if new.all():
        return None
    leaders = np.empty(len(keys), np.int64)
    leaders[order] = order[new][np.cumsum(new) - 1]
    return leaders
