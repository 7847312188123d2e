"""Files turned into memory-mapped Arrow once: the cache entry, the types its columns settle on, and what was wrong.

A reader (one for each format) yields record batches and tells `Types` what type a column needs. Where a column turns out
to need a wider type after rows were written, the pass goes on without writing and a second pass writes everything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from regraft.data.cache import cache_folder, key_of, stamp, written_whole
from regraft.errors import DataError

FORMAT = 1  # of the cache entries; raise it when the same file would be read differently
MARKERS = (
    "?",
    "NA",
    "N/A",
    "NaN",
    "nan",
    "null",
    "NULL",
    "None",
)  # cells that mean "missing" in a column of numbers or a table
ORDER = (
    pa.null(),
    pa.bool_(),
    pa.int64(),
    pa.float64(),
    pa.string(),
)  # each holds the ones before; bool only becomes string


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The rows of the files of one split, mapped from the cache."""

    path: Path  # of the Arrow file
    table: pa.Table
    rows: np.ndarray  # (N,) int64 record number of each row of the table in its file; unreadable records are left out
    problems: tuple[tuple[str, int, str], ...]  # kind, record number, message
    reasons: tuple[str, ...]
    class_names: dict[str, list[str]]  # names of integer labels, where the file brings them


@dataclass(kw_only=True)
class Log:
    """What a reader notes while it reads; `total` counts all records, also those that are left out."""

    total: int = 0
    bad: list[tuple[str, int, str]] = field(default_factory=list)  # records that are not in the table
    encoding: list[tuple[int, str]] = field(default_factory=list)  # position in the table, message
    reasons: list[str] = field(default_factory=list)
    class_names: dict[str, list[str]] = field(default_factory=dict)


@dataclass(kw_only=True)
class Types:
    """The type each column needs so far."""

    columns: dict[str, pa.DataType]
    started: bool = False  # rows were written with these types
    changed: bool = False  # a column needs more than it was written with

    def widen(self, name: str, needed: pa.DataType) -> pa.DataType:
        """The type of the column after it has met values of type `needed`."""
        known = self.columns.get(name)
        wide = needed if known is None else wider(known, needed)
        if known is None or wide != known:
            self.columns[name] = wide
            self.changed = self.changed or self.started
        return wide


def wider(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    """The narrowest type that holds both: null < int < float < string, null < bool < string, lists of strings, else string."""
    if left == right:
        return left
    if pa.types.is_null(left) or pa.types.is_null(right):
        return right if pa.types.is_null(left) else left
    if left in ORDER and right in ORDER and pa.bool_() not in (left, right):
        return ORDER[max(ORDER.index(left), ORDER.index(right))]
    return pa.list_(pa.string()) if pa.types.is_list(left) and pa.types.is_list(right) else pa.string()


class Again(Exception):
    """Raised by a reader that has changed how it reads and must start over."""


Reader = Callable[[Types, Log], Iterator[pa.RecordBatch]]


def stored(
    files: tuple[Path, ...], options: tuple[object, ...], floor: dict[str, pa.DataType], reader: Reader
) -> Stored:
    """The rows of `files`, read by `reader` where the cache does not hold them yet."""
    key = key_of(
        "table", FORMAT, [stamp(path) for path in files], options, {name: str(kind) for name, kind in floor.items()}
    )
    folder = cache_folder("tables")
    arrow, notes = folder / f"{key}.arrow", folder / f"{key}.json"
    if not (arrow.exists() and notes.exists()):
        with written_whole(arrow) as beside:
            log = _write(beside, floor, reader)
        with written_whole(notes) as beside:
            beside.write_text(json.dumps({**vars(log)}))
    return _open(arrow, Log(**json.loads(notes.read_text())))


def _write(target: Path, floor: dict[str, pa.DataType], reader: Reader) -> Log:
    """Write the batches of `reader` to an Arrow file, twice where a type had to be widened on the way."""
    types = Types(columns=dict(floor))
    while True:
        types.started = types.changed = False
        log = Log()
        writer: pa.ipc.RecordBatchFileWriter | None = None
        again, schema = False, None
        with pa.OSFile(str(target), "wb") as sink:
            try:
                for batch in reader(types, log):
                    if types.changed:
                        continue
                    if writer is None:
                        writer, types.started, schema = pa.ipc.new_file(sink, batch.schema), True, batch.schema
                    elif schema is not None and batch.schema.names != schema.names:
                        odd = sorted(set(batch.schema.names) ^ set(schema.names)) or batch.schema.names
                        raise DataError(
                            f"the files of one split differ in their columns ({', '.join(odd)}); write them alike"
                        )
                    writer.write_batch(batch)
            except Again:
                again = True
            if writer is not None:
                writer.close()
        if not types.changed and not again:
            if writer is None:
                _write_empty(target, types)
            return log


def _write_empty(target: Path, types: Types) -> None:
    """An Arrow file without rows."""
    schema = pa.schema(list(types.columns.items()))
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, schema):
        pass


def _open(arrow: Path, log: Log) -> Stored:
    """The mapped table and the record numbers of its rows."""
    table = pa.ipc.open_file(pa.memory_map(str(arrow))).read_all()
    left_out = np.array(sorted(row for _, row, _ in log.bad), np.int64)
    rows = np.arange(table.num_rows + len(left_out), dtype=np.int64)
    rows = np.delete(rows, left_out)
    encoding = [("encoding", int(rows[position]), message) for position, message in log.encoding]
    problems = tuple(
        sorted(((kind, row, message) for kind, row, message in [*log.bad, *encoding]), key=lambda entry: entry[1])
    )
    return Stored(
        path=arrow, table=table, rows=rows, problems=problems, reasons=tuple(log.reasons), class_names=log.class_names
    )


def scan(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow file one after the other in memory that is freed again (mapped pages would pile up)."""
    with pa.OSFile(str(path), "rb") as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number).select(columns)
