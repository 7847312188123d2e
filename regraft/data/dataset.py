"""A data set as values: where its rows are, what the columns mean, and what a label is.

Tables are memory-mapped Arrow, so a split of millions of rows costs no memory until a row is touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

Modality = Literal["text", "image", "table"]
Task = Literal["binary", "multiclass", "multilabel", "regression"]
SPLITS = ("train", "valid", "test", "unlabelled")


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What the columns mean, and why they were read that way."""

    modality: Modality
    inputs: tuple[str, ...]  # text: one or two columns; image: one; table: one or more
    label: tuple[str, ...]  # one column, or several 0/1 columns for multi-label; () when there is no label
    task: Task
    classes: tuple[str, ...] = ()  # names in the order of the class ids; () for regression
    group: str | None = None  # rows of one group never stand on both sides of a split
    time: str | None = None  # later rows are never used to predict earlier ones
    numeric: tuple[str, ...] = ()  # table: the inputs that are numbers; the others are categories
    ignored: Mapping[str, str] = field(default_factory=dict)  # column -> why it is not used
    reasons: tuple[str, ...] = ()  # one sentence for each thing that was detected rather than given

    @property
    def num_outputs(self) -> int:
        """Width of the head: the number of classes, or 1 for regression."""
        return len(self.classes) if self.classes else 1


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A row that could not be read as it should: raw material for a finding of the audit."""

    kind: str  # "encoding", "field-count", "missing-label", "unreadable", ...
    split: str
    row: int | None  # 0-based data row in file order; None for image files
    file: str  # file name relative to the data set
    message: str


@dataclass(frozen=True, kw_only=True)
class Split:
    """The rows of one split, in the order of `rows`."""

    name: str  # one of SPLITS
    file: str  # the file or folder these rows came from, relative to the data set
    table: pa.Table  # columns of the file; image folders: `file` (relative path) and `label`
    rows: np.ndarray  # (N,) int64: 0-based data row in its file, ascending within a file

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Splits with one schema. Values only: reading is in `read`, encoding for a model in `encode`."""

    path: Path
    schema: Schema
    splits: Mapping[str, Split]
    problems: tuple[Problem, ...] = ()
    given: frozenset[str] = frozenset()  # splits that came with the data; the others were cut by regraft
    fingerprint: str = ""  # sha256 over the bytes of the files and the schema

    def targets(self, split: str) -> np.ndarray:
        """Labels of a split.

        Classification: (N,) int64 class ids, -1 where the label is missing or unknown to `schema.classes`.
        Multi-label: (N, C) float32 of 0 and 1. Regression: (N,) float32, NaN where missing.
        """
        from regraft.data.labels import encode_targets

        return encode_targets(self.splits[split].table, self.schema)
