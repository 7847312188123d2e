"""A data set as values: where its rows are, what the columns mean, and what a label is.

Tables are memory-mapped Arrow, so a split of millions of rows costs no memory until a row is touched. A split does not
copy its rows out of the file: it keeps the whole mapped table and the positions of its rows in it, and hands out copies
of only what is asked for (`take`, `column`, `select`, `batches`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

Modality = Literal["text", "image", "audio", "table"]
Task = Literal["binary", "multiclass", "multilabel", "regression", "language-model"]
LANGUAGE: Task = "language-model"  # texts without labels: each is its own target, token by token
SPLITS = ("train", "valid", "test", "unlabelled")


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What the columns mean, and why they were read that way."""

    modality: Modality
    inputs: tuple[str, ...]  # text: one or two columns; image, audio: one; table: one or more
    label: tuple[
        str, ...
    ]  # one column, or several: 0/1 for multi-label, numbers for regression; () when there is no label
    task: Task
    classes: tuple[str, ...] = ()  # names in the order of the class ids; () for regression
    group: str | None = None  # rows of one group never stand on both sides of a split
    time: str | None = None  # later rows are never used to predict earlier ones
    numeric: tuple[str, ...] = ()  # table: the inputs that are numbers; the others are categories
    ignored: Mapping[str, str] = field(default_factory=dict)  # column -> why it is not used
    reasons: tuple[str, ...] = ()  # one sentence for each thing that was detected rather than given

    @property
    def num_outputs(self) -> int:
        """Width of the head: the number of classes, or of targets for regression."""
        return len(self.classes) or max(1, len(self.label))

    @property
    def questions(self) -> tuple[str, ...]:
        """Names of what one row asks: each label of multi-label data, each target of a regression; one name otherwise."""
        return self.classes if self.task == "multilabel" else self.label


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A row that could not be read as it should: raw material for a finding of the audit."""

    kind: str  # one of `bad.KINDS`, "stray-file" or "empty-class"
    split: str
    row: int | None  # 0-based data row in file order; None for image files
    file: str  # file name relative to the data set
    message: str
    left_out: bool = False  # the data set is without this row


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """Bad rows that were left out of a data set, exactly."""

    rows: Mapping[str, Mapping[str, np.ndarray]]  # split -> kind -> (M,) int64 rows of its file, ascending
    total: int  # rows of all files, these included
    files: str  # sha256 of the files in which they were found
    first: tuple[str, ...] = ()  # what is wrong with the first of them


@dataclass(frozen=True, kw_only=True)
class Split:
    """The rows of one split, in the order of `rows`; everywhere below, the k-th row of the split has index k.

    Ask for values with `take`, `column`, `select` or `batches`; `table` also holds the rows of other splits of the file.
    """

    name: str  # one of SPLITS
    file: str  # the file or folder these rows came from, relative to the data set
    table: pa.Table  # the whole mapped file; image folders: `file` (path relative to the data set) and `label`
    rows: np.ndarray  # (N,) int64: 0-based data row in its file, ascending within a file; what findings name
    positions: np.ndarray | None = None  # (N,) int64: where the rows stand in `table`; None: all of it, in order

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of all columns of the file, used or not."""
        return tuple(self.table.column_names)

    def take(self, column: str, index: np.ndarray | None = None, /) -> pa.ChunkedArray:
        """Values of `column` for the rows `index` (M,) of this split in that order (default: all of its rows).

        Copies only the values asked for; no copy at all where they stand together in the file.
        """
        from regraft.data.select import take

        return take(self.table.column(column), self._positions(index))

    def column(self, name: str, /) -> pa.ChunkedArray:
        """All values of one column, in the order of `rows`. For long texts prefer `batches`."""
        return self.take(name)

    def select(self, columns: Sequence[str], index: np.ndarray | None = None, /) -> pa.Table:
        """A table of some columns for the rows `index` (M,) of this split (default: all of its rows)."""
        from regraft.data.select import take

        positions = self._positions(index)
        arrays = [take(self.table.column(name), positions) for name in columns]
        return pa.Table.from_arrays(arrays, names=list(columns))

    def batches(self, columns: Sequence[str], *, size: int = 65536) -> Iterator[pa.Table]:
        """The split in order as tables of at most `size` rows: one pass over any number of rows in bounded memory."""
        for start in range(0, len(self), size):
            yield self.select(columns, np.arange(start, min(start + size, len(self))))

    def keep(self, mask: np.ndarray, /) -> Split:
        """The same split with only the rows where `mask` (N,) bool is true."""
        positions = np.arange(len(self)) if self.positions is None else self.positions
        return replace(self, rows=self.rows[mask], positions=positions[mask])

    def _positions(self, index: np.ndarray | None) -> np.ndarray | None:
        if index is None or self.positions is None:
            return self.positions if index is None else index
        return self.positions[index]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Splits with one schema. Values only: reading is in `read`, encoding for a model in `encode`."""

    path: Path
    schema: Schema
    splits: Mapping[str, Split]
    problems: tuple[Problem, ...] = ()
    given: frozenset[str] = frozenset()  # splits that came with the data; the others were cut by regraft
    skipped: Skipped | None = None  # None where a bad row stops the job, or is kept for the audit
    fingerprint: str = ""  # sha256 over the bytes of the files, the schema and which rows are in which split

    def targets(self, split: str) -> np.ndarray:
        """Labels of a split, in the order of its rows.

        Classification: (N,) int64 class ids, -1 where the label is missing or unknown to `schema.classes`.
        Multi-label: (N, C) float32 of 0 and 1. Regression: (N,) float32, NaN where missing; (N, T) where several columns are.
        A language model's texts have no label: (N,) int64 of 0.
        """
        from regraft.data.labels import encode_targets

        part = self.splits[split]
        present = [name for name in self.schema.label if name in part.column_names]
        return encode_targets(part.select(present), self.schema, num_rows=len(part))

    def raw(self, split: str, rows: np.ndarray) -> dict[str, list[object]]:
        """Input columns of some rows as Python values by column name: what `Preprocessor.encode` takes.

        `rows` (M,) are indices into the split, 0 to len - 1. Text: str, "" where missing; image and audio: the bytes
        of the file; table: int, float or str, None where missing. Call it in chunks: everything asked for is in memory.
        """
        from regraft.data.raw import raw_columns

        return raw_columns(self, split, rows)

    def without(self, dropped: Mapping[str, np.ndarray]) -> Dataset:
        """The data set less some rows: split name -> indices into that split, 0 to len - 1."""
        kept = dict(self.splits)
        for name, index in dropped.items():
            mask = np.ones(len(kept[name]), bool)
            mask[index] = False
            kept[name] = kept[name].keep(mask)
        return replace(self, splits=kept)
