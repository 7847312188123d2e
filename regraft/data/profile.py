"""What the columns of a table look like, from a sample of rows spread over the file: the ground of all detection."""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from regraft.data.files import IMAGE_SUFFIXES
from regraft.data.select import take
from regraft.data.stored import MARKERS

SAMPLE_ROWS = 20_000
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")

Kind = Literal["empty", "int", "float", "bool", "text", "list", "image", "time", "other"]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One column as far as the sample shows it."""

    name: str
    kind: Kind
    count: int  # values that are not missing
    distinct: int
    mean_words: float = 0.0
    mean_chars: float = 0.0
    low: float = 0.0  # numbers: the least and the greatest
    high: float = 0.0
    whole: bool = False  # numbers: all of them integers
    consecutive: bool = False  # integers that go up by one from row to row
    separated: bool = False  # text: often several short values between semicolons or bars
    dated: bool = False  # text that is an ISO date or time
    image_path: bool = False  # text that ends like the name of an image file

    @property
    def distinct_share(self) -> float:
        """Distinct values among those not missing, 0 to 1."""
        return self.distinct / max(self.count, 1)


def sample_of(table: pa.Table, rows: int = SAMPLE_ROWS) -> pa.Table:
    """At most `rows` rows of a table: runs of neighbours at even distances, so that few pages of a mapped file are read."""
    if table.num_rows <= rows:
        return table
    runs = 40
    starts = np.linspace(0, table.num_rows - rows // runs, runs).astype(np.int64)
    positions = np.unique((starts[:, None] + np.arange(rows // runs)).ravel())
    arrays = [take(table.column(name), positions) for name in table.column_names]
    return pa.Table.from_arrays(arrays, names=table.column_names)


def profile(sample: pa.Table, name: str) -> Profile:
    """What one column of a sample looks like."""
    column = sample.column(name)
    kind = column.type
    if pa.types.is_struct(kind) or pa.types.is_binary(kind):
        return Profile(
            name=name,
            kind="image" if _holds_images(column) else "other",
            count=len(column) - column.null_count,
            distinct=0,
        )
    if pa.types.is_list(kind):
        return Profile(
            name=name, kind="list" if pa.types.is_string(kind.value_type) else "other", count=len(column), distinct=0
        )
    if pa.types.is_string(kind):
        return _text(name, column)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _number(name, column)
    values = column.drop_null()
    family: Kind = "bool" if pa.types.is_boolean(kind) else "time" if pa.types.is_temporal(kind) else "other"
    distinct = len(pc.unique(values)) if family != "other" else 0
    return Profile(name=name, kind=family if len(values) else "empty", count=len(values), distinct=distinct)


def _text(name: str, column: pa.ChunkedArray) -> Profile:
    values = column.filter(
        pc.and_(pc.is_valid(column), pc.invert(pc.is_in(column, value_set=pa.array([*MARKERS, ""]))))
    )
    if not len(values):
        return Profile(name=name, kind="empty", count=0, distinct=0)
    head = values.slice(0, 2000)
    words = pc.mean(pc.cast(pc.count_substring_regex(head, r"\S+"), pa.float64())).as_py()
    pieces = pc.count_substring_regex(head, r"[^;|]\s*[;|]")
    dated = pc.match_substring_regex(head, r"^\d{4}-\d\d(-\d\d)?([T ]\d\d:\d\d.*)?$")
    ending = "|".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
    paths = pc.match_substring_regex(pc.utf8_lower(head), rf"\.({ending})$")
    return Profile(
        name=name,
        kind="text",
        count=len(values),
        distinct=len(pc.unique(values)),
        mean_words=words,
        mean_chars=pc.mean(pc.cast(pc.utf8_length(values), pa.float64())).as_py(),
        separated=pc.mean(pc.cast(pc.greater(pieces, 0), pa.float64())).as_py() >= 0.2,
        dated=pc.mean(pc.cast(dated, pa.float64())).as_py() > 0.95,
        image_path=pc.mean(pc.cast(paths, pa.float64())).as_py() > 0.9,
    )


def _number(name: str, column: pa.ChunkedArray) -> Profile:
    values = column.drop_null().to_numpy().astype(np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return Profile(name=name, kind="empty", count=0, distinct=0)
    whole = bool((values == np.floor(values)).all())
    return Profile(
        name=name,
        kind="int" if pa.types.is_integer(column.type) else "float",
        count=len(values),
        distinct=len(np.unique(values)),
        low=float(values.min()),
        high=float(values.max()),
        whole=whole,
        # runs of neighbours are sampled, so a row number goes up by one nearly everywhere
        consecutive=whole and len(values) > 2 and float((np.diff(values) == 1).mean()) > 0.99,
    )


def _holds_images(column: pa.ChunkedArray) -> bool:
    """Whether the first value there is begins like an image file, or is a hub cell with a path to one."""
    for value in column.slice(0, 200).to_pylist():
        cell = value.get("bytes") or value.get("path") if isinstance(value, dict) else value
        if isinstance(cell, bytes) and cell:
            return cell.startswith(MAGIC)
        if isinstance(cell, str) and cell:
            return cell.lower().endswith(IMAGE_SUFFIXES)
    return False
