"""Features by which the audit's own model judges labels when no probe does: words, characters, colours, edges, cells."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from regraft.data.dataset import Schema
from regraft.phases.audit.parts import Part, as_text
from regraft.phases.audit.suspects import held_out_probabilities, suspect_findings
from regraft.phases.findings import Finding

SAMPLE = 20_000  # rows judged at most
KERNEL_ROWS = 3000  # up to so many rows all pairs are compared; beyond, rows are projected to DIMENSIONS
DIMENSIONS = 192
BINS = 12  # quantiles of a number
VALUES = 30  # distinct values of a category that count


def own_suspects(
    part: Part, schema: Schema, images: np.ndarray | None, *, seed: int
) -> tuple[list[Finding], dict[str, Any]]:
    """Suspected label errors of one part by the audit's own model, and how many rows it judged.

    `images` are descriptors (N, D) of the images of the part, or of any data set features that the caller has.
    """
    codes = part.clean_codes
    rows = np.flatnonzero(part.usable & (codes >= 0))
    facts = {"rows": len(rows), "judged": int(min(len(rows), SAMPLE)), "seed": seed}
    if len(rows) > SAMPLE:
        rows = np.sort(np.random.default_rng(seed).choice(rows, SAMPLE, replace=False))
    present, labels = np.unique(codes[rows], return_inverse=True)
    if len(present) < 2 or len(rows) < 20:
        return [], facts | {"judged": 0}
    values, is_kernel = _features(part, schema, images, rows, seed=seed)
    if values is None:
        return [], facts | {"judged": 0}
    probabilities = held_out_probabilities(values, labels, is_kernel=is_kernel)
    scope = f" (a sample of {len(rows):,} of {len(part):,} rows)" if facts["judged"] < facts["rows"] else ""
    judge = "a simple model that never saw them"
    return suspect_findings(part, rows, probabilities, labels, codes=present, judge=judge, scope=scope), facts


def _features(
    part: Part, schema: Schema, images: np.ndarray | None, rows: np.ndarray, *, seed: int
) -> tuple[np.ndarray | None, bool]:
    """(features (M, D) or kernel (M, M), whether it is a kernel) of some rows; None where there is nothing to go by."""
    if images is not None:
        return _unit(_standard(np.asarray(images[rows], dtype=np.float64))), False
    columns = [name for name in schema.inputs if name in part.split.column_names]
    if schema.modality == "text" and columns:
        texts = [pc.fill_null(as_text(part.split.take(name, rows)), "").to_pylist() for name in columns]
        return text_features([" ".join(cells) for cells in zip(*texts, strict=True)], seed=seed)
    if schema.modality == "table" and columns:
        blocks = [cell_features(part.split.take(name, rows)) for name in columns]
        return _unit(np.concatenate(blocks, axis=1)), False
    return None, False


def text_features(texts: list[str], *, seed: int) -> tuple[np.ndarray, bool]:
    """TF-IDF of words, word pairs and characters: the (N, N) kernel of a small set, (N, 256) projections of a large one."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union
    from sklearn.preprocessing import normalize

    small = len(texts) <= KERNEL_ROWS
    texts = [text[:2000] for text in texts]
    words = TfidfVectorizer(
        ngram_range=(1, 2) if small else (1, 1),
        sublinear_tf=True,
        min_df=1 if small else 2,
        max_features=50_000,
        token_pattern=r"(?u)\w+",
    )
    letters = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, min_df=2 if len(texts) > 50 else 1
    )
    if not any(any(c.isalnum() for c in text) for text in texts):
        return np.zeros((len(texts), 1)), False
    matrix = normalize(
        make_union(words, letters).fit_transform(texts) if len(texts) <= 5000 else words.fit_transform(texts)
    ).tocsr()
    if small:
        return np.asarray((matrix @ matrix.T).toarray()), True
    size = min(DIMENSIONS, matrix.shape[1] - 1)
    return _unit(TruncatedSVD(size, n_iter=1, random_state=seed).fit_transform(matrix)), False


def cell_features(column: pa.ChunkedArray) -> np.ndarray:
    """(N, K) one-hot: the quantile of a number, the value of a category (the VALUES most frequent ones)."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        values = np.asarray(pc.cast(column, pa.float64()).to_numpy(), dtype=np.float64)
        known = values[np.isfinite(values)]
        edges = np.unique(np.quantile(known, np.linspace(0, 1, BINS + 1)[1:-1])) if len(known) else np.empty(0)
        codes = np.where(np.isfinite(values), np.searchsorted(edges, values, side="right"), len(edges) + 1)
        return np.eye(len(edges) + 2)[codes]
    text = pc.fill_null(as_text(column), "")
    counts = text.value_counts()
    order = np.argsort(-counts.field("counts").to_numpy(), kind="stable")[:VALUES]
    codes = np.asarray(
        pc.fill_null(pc.index_in(text, value_set=counts.field("values").take(pa.array(order))), len(order))
    )
    return np.eye(len(order) + 1)[codes]


def image_features(colour: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """(N, D) of thumbnails (N, 16, 16, 3) and (N, 48, 48) uint8: coarse pixels, a colour histogram and edge directions."""
    small = colour.astype(np.float32) / 255
    coarse = small.reshape(-1, 8, 2, 8, 2, 3).mean(axis=(2, 4)).reshape(len(small), -1)
    cells = np.minimum((small * 4).astype(np.int64), 3) @ np.array([16, 4, 1])
    colours = (
        np.stack([np.bincount(row.ravel(), minlength=64) for row in cells]) / 256 if len(cells) else np.empty((0, 64))
    )
    return np.concatenate([0.5 * coarse, np.sqrt(colours) * 2, edge_directions(grey)], axis=1)


def edge_directions(grey: np.ndarray) -> np.ndarray:
    """(N, 6 * 6 * 8) share of edge strength by direction in 6 x 6 cells (Dalal and Triggs 2005, without block overlap)."""
    values = grey.astype(np.float32)
    down, right = np.gradient(values, axis=(1, 2))
    strength = np.hypot(down, right)
    direction = ((np.arctan2(down, right) % np.pi) / np.pi * 8).astype(np.int64) % 8
    histogram = np.stack(
        [np.where(direction == k, strength, 0).reshape(-1, 6, 8, 6, 8).sum(axis=(2, 4)) for k in range(8)], axis=-1
    )
    flat = histogram.reshape(len(grey), 36, 8)
    return (flat / (np.linalg.norm(flat, axis=2, keepdims=True) + 20)).reshape(len(grey), -1)


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(axis=0)) / (values.std(axis=0) + 1e-6)


def _unit(values: np.ndarray) -> np.ndarray:
    return values / (np.linalg.norm(values, axis=1, keepdims=True) + 1e-9)
