"""The rows of each file as the audit looks at them: splits that regraft cut off are put back into the file they came from."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from regraft.data.dataset import SPLITS, Dataset, Schema, Split
from regraft.phases.findings import Finding, Severity

BLANK = " \t\r\n\f\v\u00a0\u200b\u200c\u200d\u2060\ufeff"  # white space and characters without width
NO_TEXT = ("", "-", "--", "?", ".", "n/a", "na", "#n/a", "nan", "none", "null", "nil", "missing", "undefined")
NO_CLASS = ("", "n/a", "#n/a", "nan", "null")  # "none" and "na" are names of classes more often than gaps


@dataclass(frozen=True, kw_only=True)
class Part:
    """All rows of one given split, in file order, with the codes of their labels."""

    split: Split  # its `rows` are what findings name
    names: tuple[int | str, ...] | None  # image folders: the file names, which findings name instead of row numbers
    codes: np.ndarray  # (N,) int32 label code, shared by all parts; -1 where missing
    labels: tuple[str, ...]  # label of each code, as it is written in the data
    merged: np.ndarray  # (len(labels),) int32: the code each code is a spelling of (itself where it is none)
    usable: np.ndarray  # (N,) bool: the input is there; for images also: it can be read

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.split)

    @property
    def name(self) -> str:
        """Name of the split."""
        return self.split.name

    @property
    def clean_codes(self) -> np.ndarray:
        """(N,) int32 label codes after spellings of one label are merged; -1 where missing."""
        return np.where(self.codes < 0, -1, self.merged[np.maximum(self.codes, 0)]) if len(self.labels) else self.codes

    def row(self, index: int) -> int | str:
        """What findings call the row with this index."""
        return self.names[index] if self.names is not None else int(self.split.rows[index])

    def rows(self, index: np.ndarray) -> tuple[int | str, ...]:
        """What findings call the rows with these indices."""
        if self.names is not None:
            return tuple(self.names[i] for i in index.tolist())
        return tuple(self.split.rows[index].tolist())

    def finding(
        self,
        kind: str,
        severity: Severity,
        message: str,
        index: np.ndarray | None = None,
        *,
        column: str | None = None,
        related: Sequence[tuple[Part, int]] = (),
        suggested: Sequence[str] = (),
    ) -> Finding:
        """A finding about the rows with these indices (default: about no row in particular)."""
        return Finding(
            kind=kind,
            severity=severity,
            message=message,
            split=self.name,
            file=self.split.file,
            column=column,
            rows=() if index is None else self.rows(index),
            related=tuple({"split": part.name, "row": part.row(other)} for part, other in related),
            suggested=tuple(suggested),
        )

    def batches(self, columns: Sequence[str], *, size: int = 65536) -> Iterator[tuple[int, pa.Table]]:
        """(index of the first row, rows as a table) over the part in order."""
        start = 0
        for table in self.split.batches(columns, size=size):
            yield start, table
            start += table.num_rows


def parts_of(dataset: Dataset) -> tuple[Part, ...]:
    """One part for each given split in the order of SPLITS; cut splits go back to the file they came from."""
    given = [name for name in SPLITS if name in dataset.splits and (name in dataset.given or not dataset.given)]
    whole = [_whole(dataset, name) for name in given]
    texts = [label_strings(split, dataset.schema) for split in whole]
    labels, codes = _encode(texts, [len(split) for split in whole])
    merged = np.arange(len(labels), dtype=np.int32)
    return tuple(
        Part(
            split=split,
            names=_names(split, dataset.schema),
            codes=code,
            labels=labels,
            merged=merged,
            usable=np.ones(len(split), dtype=bool),
        )
        for split, code in zip(whole, codes, strict=True)
    )


def index_of(part: Part, rows: Sequence[int | str]) -> np.ndarray:
    """Indices in the part of the rows that a finding names; rows that were never read are left out."""
    if part.names is not None:
        known = {name: index for index, name in enumerate(part.names)}
        return np.array([known[row] for row in rows if row in known], dtype=np.int64)
    wanted = np.array([row for row in rows if isinstance(row, int)], dtype=np.int64)
    place = np.minimum(np.searchsorted(part.split.rows, wanted), max(len(part) - 1, 0))
    return place[part.split.rows[place] == wanted] if len(part) else place[:0]


def places(part: Part, split: Split) -> np.ndarray:
    """Indices in the part of the rows of a split that belongs to it."""
    if part.split.positions is None or split.positions is None:
        return np.arange(len(split)) if split.positions is None else split.positions
    return np.searchsorted(part.split.positions, split.positions)


def is_missing(column: pa.Array | pa.ChunkedArray, marks: tuple[str, ...]) -> np.ndarray:
    """(N,) bool: null, NaN, blank, or one of `marks` without regard to case."""
    if pa.types.is_floating(column.type):
        return np.asarray(pc.fill_null(pc.is_nan(column), True))
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return np.asarray(pc.is_null(column))
    bare = pc.utf8_lower(pc.utf8_trim(column, BLANK))
    return np.asarray(pc.or_(pc.is_null(bare), pc.is_in(bare, value_set=pa.array(marks, bare.type))))


def as_text(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """A column as strings; null stays null."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column
    return pc.cast(column, pa.string())


def label_strings(split: Split, schema: Schema) -> pa.ChunkedArray | None:
    """The label of every row as one string, null where missing; None where the split has no label column."""
    columns = [name for name in schema.label if name in split.column_names]
    if not columns:
        return None
    texts = []
    for name in columns:
        column = split.column(name)
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            texts.append(
                pa.chunked_array([pa.array([None if v is None else ";".join(map(str, v)) for v in column.to_pylist()])])
            )
            continue
        missing = pa.array(is_missing(column, NO_CLASS))
        texts.append(pc.if_else(missing, pa.scalar(None, pa.string()), _whole_numbers(column)))
    return texts[0] if len(texts) == 1 else pc.binary_join_element_wise(*texts, ";")


def _whole_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Floats that are all whole without their `.0`, everything else as text."""
    if pa.types.is_floating(column.type):
        known = pc.drop_null(pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column))
        if len(known) and pc.all(pc.equal(known, pc.floor(known))).as_py():
            return pc.cast(pc.cast(column, pa.int64(), safe=False), pa.string())
    return as_text(column)


def _encode(
    texts: Sequence[pa.ChunkedArray | None], lengths: Sequence[int]
) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """(distinct labels in sorted order, codes of each text column)."""
    found: set[str] = set()
    for text in texts:
        if text is not None:
            found.update(v for v in pc.unique(text).to_pylist() if v is not None)
    labels = tuple(sorted(found))
    values = pa.array(labels, pa.string())
    return labels, [_codes(text, values, rows) for text, rows in zip(texts, lengths, strict=True)]


def _codes(text: pa.ChunkedArray | None, values: pa.Array, rows: int) -> np.ndarray:
    if text is None:
        return np.full(rows, -1, np.int32)
    return np.asarray(pc.fill_null(pc.index_in(text, value_set=values), -1)).astype(np.int32)


def _whole(dataset: Dataset, name: str) -> Split:
    """The split with the rows that were cut off it for others, in file order."""
    split = dataset.splits[name]
    cut = [
        s for key, s in dataset.splits.items() if dataset.given and key not in dataset.given and s.file == split.file
    ]
    if not cut:
        return split
    pieces = [split, *cut]
    positions = np.concatenate([s.positions if s.positions is not None else np.arange(len(s)) for s in pieces])
    order = np.argsort(positions, kind="stable")
    return replace(split, rows=np.concatenate([s.rows for s in pieces])[order], positions=positions[order])


def _names(split: Split, schema: Schema) -> tuple[str, ...] | None:
    """File names of an image folder; None where rows are numbered."""
    if (
        schema.modality != "image"
        or schema.inputs[0] != "file"
        or not pa.types.is_string(split.table.column("file").type)
    ):
        return None
    return tuple(split.column("file").to_pylist())
