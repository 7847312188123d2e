"""Texts with many character shingles in common: MinHash signatures and locality-sensitive hashing, all in numpy.

Broder 1997; bands and rows as in Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regraft.phases.audit.keys import grouped

WIDTH = 3  # characters of a shingle
BANDS, ROWS = 25, 4  # a pair of Jaccard similarity 0.65 is found with probability 0.993, one of 0.3 with 0.18
BUCKET = 50  # a bucket of at most this many members is compared all with all
NEXT = 3  # in a larger bucket each member is compared with this many that follow
MOST_BYTES = 2000  # of each text that are looked at


def shingles(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of all shingles (S,) uint64, where those of each text begin (N,) int64); bytes of UTF-8, at least one a text."""
    encoded = [f" {text[:MOST_BYTES]} ".encode() + b" " * max(0, WIDTH - 2 - len(text)) for text in texts]
    lengths = np.fromiter((len(e) for e in encoded), np.int64, len(encoded))
    data = np.frombuffer(b"".join(encoded), np.uint8).astype(np.uint64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    windows = data[:-2] | (data[1:-1] << np.uint64(8)) | (data[2:] << np.uint64(16))
    inside = np.ones(len(windows), dtype=bool)
    ends = offsets[1:]
    inside[ends - 1] = False  # windows that begin in the last two bytes of a text reach into the next one
    inside[ends - 2] = False
    counts = lengths - (WIDTH - 1)
    return windows[inside], np.concatenate([[0], np.cumsum(counts)])[:-1]


def signatures(hashes: np.ndarray, starts: np.ndarray, *, seed: int) -> np.ndarray:
    """(N, BANDS * ROWS) uint32 MinHash signatures."""
    rng = np.random.default_rng(seed)
    factors = rng.integers(1, 2**63, size=BANDS * ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    shifts = rng.integers(0, 2**63, size=BANDS * ROWS, dtype=np.uint64)
    out = np.empty((len(starts), BANDS * ROWS), np.uint32)
    with np.errstate(over="ignore"):
        spread = (hashes + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        spread ^= spread >> np.uint64(31)
        for k, (factor, shift) in enumerate(zip(factors, shifts, strict=True)):
            out[:, k] = np.minimum.reduceat(((spread * factor + shift) >> np.uint64(32)).astype(np.uint32), starts)
    return out


def candidates(signature: np.ndarray) -> np.ndarray:
    """(P, 2) int64 pairs i < j of rows that agree in all rows of at least one band."""
    found = [np.empty(0, np.int64)]
    for band in range(BANDS):
        block = np.ascontiguousarray(signature[:, band * ROWS : (band + 1) * ROWS])
        words = block.view(np.uint64)
        with np.errstate(over="ignore"):
            key = (words[:, 0] * np.uint64(0x9E3779B97F4A7C15)) ^ (words[:, 1] * np.uint64(0xC2B2AE3D27D4EB4F))
        found.append(_bucket_pairs(key))  # one number a pair: sorting two columns takes forty times as long
    numbered = np.unique(np.concatenate(found))
    return np.stack(np.divmod(numbered, max(len(signature), 1)), axis=1)


def agreement(signature: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(P,) share of equal entries of the signatures: an unbiased estimate of the Jaccard similarity (deviation <= 0.05)."""
    out = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), 100_000):
        block = pairs[start : start + 100_000]
        out[start : start + len(block)] = (signature[block[:, 0]] == signature[block[:, 1]]).mean(axis=1)
    return out


def _bucket_pairs(key: np.ndarray) -> np.ndarray:
    """(P,) pairs i < j as i * N + j inside the buckets of one band; at most BUCKET pairs a row, so the work stays linear."""
    order, starts = grouped(key)
    sizes = np.diff(np.append(starts, len(key)))
    kept = np.repeat(sizes > 1, sizes)
    rows, ranked, crowd = order[kept], key[order[kept]], np.repeat(sizes, sizes)[kept]
    found = [np.empty(0, np.int64)]
    for step in range(1, min(int(sizes.max(initial=1)), BUCKET)):
        same = ranked[step:] == ranked[:-step]
        if step > NEXT:
            same &= crowd[step:] <= BUCKET
        if not same.any():
            break
        one, two = rows[:-step][same], rows[step:][same]
        found.append(np.minimum(one, two) * len(key) + np.maximum(one, two))
    return np.concatenate(found)
