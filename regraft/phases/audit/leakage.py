"""Findings about splits that know each other: groups on both sides, and training rows from after the test began."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from regraft.data.dataset import Dataset, Schema, Split
from regraft.errors import DataError
from regraft.phases.audit.parts import Part, as_text
from regraft.phases.findings import Finding

CHECKED = ("train", "valid", "test")


def leakage_findings(parts: tuple[Part, ...], dataset: Dataset) -> list[Finding]:
    """Group and time leakage between the given splits."""
    schema = dataset.schema
    present = [part for part in parts if part.name in CHECKED]
    findings = []
    for earlier, later in combinations(present, 2):
        if schema.group and _both(earlier.split, later.split, schema.group):
            findings.append(group_finding(earlier, later, schema.group))
        if schema.time and _both(earlier.split, later.split, schema.time):
            findings.append(time_finding(earlier, later, schema))
    return [finding for finding in findings if finding is not None]


def group_finding(earlier: Part, later: Part, column: str) -> Finding | None:
    """Rows of the later split whose group also has rows in the earlier one."""
    old, new = as_text(earlier.split.column(column)), as_text(later.split.column(column))
    place = pc.index_in(new, value_set=pc.unique(old))
    shared = np.asarray(pc.and_(pc.is_valid(new), pc.is_valid(place)))
    rows = np.flatnonzero(shared)
    if not len(rows):
        return None
    groups = len(pc.unique(new.filter(pa.array(shared))))
    first = np.asarray(pc.index_in(new.filter(pa.array(shared)), value_set=_firsts(old)))
    index = _first_rows(old)[first]
    message = (
        f"{groups:,} groups of {column!r} stand in {earlier.name} and in {later.name} ({len(rows):,} rows of {later.name}); "
        f"keep each group on one side"
    )
    related = [(earlier, int(i)) for i in index]
    return later.finding("group-leakage", "error", message, rows, column=column, related=related)


def time_finding(earlier: Part, later: Part, schema: Schema) -> Finding | None:
    """Rows of the earlier split that are later in time than the first row of the later split."""
    column = schema.time or ""
    old, new = moments(earlier.split, column), moments(later.split, column)
    if not np.isfinite(new).any():
        return None
    begin = float(np.nanmin(new))
    rows = np.flatnonzero(old > begin)
    if not len(rows):
        return None
    message = (
        f"{len(rows):,} of {len(earlier):,} rows in {earlier.name} are later than the first row of {later.name} by {column!r}, "
        f"so the model learns from the future; cut the splits by time"
    )
    return earlier.finding("time-leakage", "error", message, rows, column=column)


def moments(split: Split, column: str) -> np.ndarray:
    """(N,) float64: numbers as they are, dates and times as seconds; NaN where missing. DataError where it is neither."""
    values = split.column(column)
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        return np.asarray(pc.cast(values, pa.float64()).to_numpy(), dtype=np.float64)
    try:
        stamps = pc.cast(_bare(values), pa.timestamp("us"))
    except pa.ArrowInvalid as error:
        raise DataError(
            f"the time column {column!r} must hold numbers or ISO dates such as 2024-05-31, got {_sample(values)}"
        ) from error
    seconds = np.asarray(pc.cast(stamps, pa.int64()).to_numpy(zero_copy_only=False), dtype=np.float64) / 1e6
    return np.where(np.asarray(pc.is_null(stamps)), np.nan, seconds)


def _bare(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts without outer space, null where empty; other types as they are."""
    if not pa.types.is_string(values.type):
        return values
    text = pc.utf8_trim_whitespace(values)
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _sample(values: pa.ChunkedArray) -> str:
    return repr(next((v for v in values.slice(0, 100).to_pylist() if v), None))


def _firsts(values: pa.ChunkedArray) -> pa.Array:
    return pc.unique(values)


def _first_rows(values: pa.ChunkedArray) -> np.ndarray:
    """Index of the first row of each distinct value, in the order of `pc.unique`."""
    codes = np.asarray(pc.index_in(values, value_set=_firsts(values)))
    return np.unique(codes, return_index=True)[1]


def _both(one: Split, two: Split, column: str) -> bool:
    return column in one.column_names and column in two.column_names
