"""Labels as numbers: the names of the classes in their order, and the class id, 0/1 row or value of every row."""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)
from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from regraft.data.dataset import LANGUAGE, Schema
from regraft.data.stored import MARKERS
from regraft.errors import DataError

LARGEST = float(np.finfo(np.float32).max)  # target; what is beyond it counts as missing, and is a bad row
SEPARATORS = (";", "|")  # between the labels of one row of multi-label data
NO_LABEL = tuple(
    mark for mark in MARKERS if mark != "None"
)  # in a table; "None" is the name of a class more often than a gap


def encode_targets(table: pa.Table, schema: Schema, *, num_rows: int | None = None) -> np.ndarray:
    """Labels of the rows of `table`, which holds the label columns (none of them: every label is missing).

    Classification: (N,) int64 class ids, -1 where the label is missing or unknown to `schema.classes`.
    Multi-label: (N, C) float32 of 0 and 1. Regression: (N,) float32, NaN where missing; (N, T) of several columns.
    A language model's texts have no label: (N,) int64 of 0.
    """
    count = table.num_rows if num_rows is None else num_rows
    if schema.task == LANGUAGE:
        return np.zeros(count, np.int64)
    columns = [name for name in schema.label if name in table.column_names]
    if schema.task == "multilabel":
        if len(columns) > 1:
            return np.stack([_floats(table.column(name), missing=0.0) for name in columns], axis=1)
        return (
            _many_hot(table.column(columns[0]), schema)
            if columns
            else np.zeros((count, len(schema.classes)), np.float32)
        )
    if schema.task == "regression":
        unknown = np.full(count, np.nan, np.float32)
        values = [_floats(table.column(name), missing=np.nan) if name in columns else unknown for name in schema.label]
        return np.stack(values, axis=1) if len(values) > 1 else (values or [unknown])[0]
    if not columns:
        return np.full(count, -1, np.int64)
    names = pa.array(schema.classes, pa.string())
    parts = [_class_ids(chunk, names) for chunk in table.column(columns[0]).chunks]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def label_texts(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """A label column as class names: integers without a point, whole floats too, text as it is, null where missing."""
    kind = column.type
    if pa.types.is_floating(kind):
        whole = pc.all(pc.equal(column, pc.floor(column))).as_py()
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column)
        return pc.cast(pc.cast(column, pa.int64()) if whole is not False else column, pa.string())
    if pa.types.is_dictionary(kind) or not pa.types.is_string(kind):
        return pc.cast(column, pa.string())
    return column


def class_values(columns: Iterable[pa.ChunkedArray], *, table: bool) -> tuple[str, ...]:
    """The distinct labels of some columns in natural order (numbers by value, the rest by name, `item2` before `item10`)."""
    found: set[str] = set()
    for column in columns:
        for chunk in column.chunks:
            found.update(value for value in pc.unique(label_texts(chunk)).to_pylist() if value is not None)
    found.discard("")
    return tuple(sorted(found.difference(NO_LABEL) if table else found, key=natural))


def multilabel_values(columns: Iterable[pa.ChunkedArray]) -> tuple[str, ...]:
    """The distinct labels of columns of lists, or of text with separators, in natural order."""
    found: set[str] = set()
    for column in columns:
        for chunk in column.chunks:
            found.update(value for value in pc.unique(label_lists(chunk).flatten()).to_pylist() if value)
    return tuple(sorted(found, key=natural))


def label_lists(column: pa.Array) -> pa.Array:
    """A list of label names for each row, from lists or from text such as `red; round`; null stays null."""
    if not pa.types.is_list(column.type):
        text = pc.cast(column, pa.string())
        column = pc.split_pattern_regex(pc.utf8_trim(text, " ;|"), r"\s*[;|]\s*")
    return pc.cast(column, pa.list_(pa.string()))


def natural(name: str) -> tuple[tuple[int, float, str], ...]:
    """Sort key: numbers by value before words, and numbers inside words by value.

    >>> sorted(["10", "9", "b", "a10", "a9", "-1"], key=natural)
    ['-1', '9', '10', 'a9', 'a10', 'b']
    """
    try:
        return ((0, float(name), name),)
    except ValueError:
        parts = [part for part in re.split(r"(\d+)", name.casefold()) if part]
        words = [(1, float(part), "") if part.isdecimal() else (2, 0.0, part) for part in parts]
        return (*words, (3, 0.0, name))


def _class_ids(chunk: pa.Array, names: pa.Array) -> np.ndarray:
    """(n,) int64 position of each label in `names`, -1 where it is not there."""
    found = pc.index_in(label_texts(chunk), value_set=names)
    return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def _floats(column: pa.ChunkedArray, *, missing: float) -> np.ndarray:
    """(N,) float32 of a column of numbers; DataError with the first value that is none."""
    from regraft.data.delimited import as_numbers

    parts = []
    for chunk in column.chunks:
        if pa.types.is_string(chunk.type):
            numbers = as_numbers(chunk)
            if numbers is None:
                raise DataError(
                    f"a label must be a number for this task, got {_first_word(chunk)!r}; give --task or --label"
                )
            chunk = numbers
        numbers = pc.cast(chunk, pa.float64()).to_numpy(zero_copy_only=False)
        usable = np.abs(np.nan_to_num(numbers, nan=np.inf, posinf=np.inf, neginf=np.inf)) <= LARGEST
        parts.append(np.where(usable, numbers, missing).astype(np.float32))
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def _first_word(chunk: pa.Array) -> str:
    """The first value of a text column that is not a number."""
    from regraft.data.delimited import as_numbers

    return next((value for value in chunk.to_pylist() if value and as_numbers(pa.array([value])) is None), "")


def _many_hot(column: pa.ChunkedArray, schema: Schema) -> np.ndarray:
    """(N, C) float32 with 1 for each label a row names."""
    names = pa.array(schema.classes, pa.string())
    parts = []
    for chunk in column.chunks:
        lists = label_lists(chunk)
        hot = np.zeros((len(lists), len(names)), np.float32)
        row = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
        label = pc.fill_null(pc.index_in(pc.list_flatten(lists), value_set=names), -1).to_numpy(zero_copy_only=False)
        hot[row[label >= 0], label[label >= 0]] = 1.0
        parts.append(hot)
    return np.concatenate(parts) if parts else np.zeros((0, len(names)), np.float32)
