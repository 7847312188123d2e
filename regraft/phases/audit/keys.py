"""64-bit keys of rows, so that equal rows are found by sorting numbers instead of comparing texts.

Two different rows share a key with a chance of 7e-7 among five million rows.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from regraft.phases.audit.parts import BLANK, Part, as_text

SEPARATOR = "\x1f"  # between the columns of one row
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def normalise(text: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Texts with case, width (NFKC), white space and punctuation folded away; texts of punctuation only stay as they are."""
    lower = pc.utf8_lower(pc.utf8_normalize(text, form="NFKC"))
    plain = pc.utf8_trim(pc.replace_substring_regex(lower, pattern=r"[^\pL\pN\pM]+", replacement=" "), BLANK)
    return pc.if_else(pc.equal(plain, ""), lower, plain)


def row_keys(part: Part, columns: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(keys of the rows as they are, keys of the normalised rows), each (N,) uint64, read batch by batch."""
    raw = np.empty(len(part), np.uint64)
    folded = np.empty(len(part), np.uint64)
    for start, table in part.batches(columns):
        stop = start + table.num_rows
        texts = [pc.fill_null(as_text(table.column(name)), "") for name in columns]
        raw[start:stop] = _hashes(_joined(texts))
        folded[start:stop] = _hashes(_joined([normalise(text) for text in texts]))
    return raw, folded


def mixed(keys: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(N,) uint64 keys that also depend on a small integer for each row."""
    with np.errstate(over="ignore"):
        other = (codes.astype(np.int64).view(np.uint64) + np.uint64(2)) * GOLDEN
        other ^= other >> np.uint64(29)
        return keys ^ (other * np.uint64(0xBF58476D1CE4E5B9))


def grouped(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(order, starts): rows sorted by key with equal keys in row order, and where in `order` each distinct key begins."""
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    first = np.ones(len(keys), dtype=bool)
    first[1:] = ranked[1:] != ranked[:-1]
    return order, np.flatnonzero(first)


def group_numbers(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(group number of each row (N,), rows in each group (G,)) for equal keys."""
    order, starts = grouped(keys)
    sizes = np.diff(np.append(starts, len(keys)))
    numbers = np.empty(len(keys), np.int64)
    numbers[order] = np.repeat(np.arange(len(starts)), sizes)
    return numbers, sizes


def first_match(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) int64: index of the first of `others` with the same key, -1 where there is none."""
    if not len(others):
        return np.full(len(keys), -1, np.int64)
    distinct, index = np.unique(others, return_index=True)
    place = np.minimum(np.searchsorted(distinct, keys), len(distinct) - 1)
    return np.where(distinct[place] == keys, index[place], -1)


def _joined(texts: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    return texts[0] if len(texts) == 1 else pc.binary_join_element_wise(*texts, SEPARATOR)


def _hashes(text: pa.ChunkedArray) -> np.ndarray:
    """(N,) uint64 BLAKE2b of each text."""
    values = pc.cast(text, pa.large_binary()).to_pylist()
    return np.frombuffer(b"".join(hashlib.blake2b(value, digest_size=8).digest() for value in values), np.uint64)
