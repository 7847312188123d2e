"""Rows that nothing can be learned from or said about, found with their reason before anything expensive is done with them.

What a reader cannot make a row of is noted by the reader. Here are the checks of what it could read: texts, numbers, labels.
Images are checked in `bad_images`; what is then done with the rows is decided in `bad_policy`.
"""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from regraft.config.data import DataSpec
from regraft.data.dataset import Schema
from regraft.data.labels import NO_LABEL
from regraft.data.stored import MARKERS

READER = ("field-count", "unreadable", "encoding")  # kinds that readers note
KINDS = {  # kind -> what is wrong with such a row, for counts
    "field-count": "a wrong number of fields",
    "unreadable": "what cannot be read",
    "encoding": "bytes that are not in the encoding of the file",
    "decompression-bomb": "images that are too large to be decoded",
    "nul-byte": "a NUL character",
    "missing-text": "no text",
    "huge-text": "a text that is too long",
    "empty-row": "no input at all",
    "not-a-number": "text in a column of numbers",
    "not-finite": "a number that is infinite",
    "missing-label": "no label",
    "bad-target": "a target that is no finite number",
}
LONGEST = 1_000_000  # characters of a text; more is a file that got into a cell
LARGEST_TARGET = 1e18  # its square must be a float32
MOSTLY = 0.9  # share of numbers from which a column of text is taken for a column of numbers with odd cells
DISTINCT = 20  # different numbers from which it is; fewer are classes
NUMBER = r"(?i)^\s*[-+]?((\d+\.?\d*|\.\d+)(e[-+]?\d+)?|inf|infinity)\s*$"
CODE = r"^\s*([-+]?0\d|[-+]?\d{16,}\s*$)"  # what `delimited.as_numbers` keeps as text
LETTERED = r"^\s*[A-Za-z]{1,3}[-. ]?\d"  # codes such as V57 beside plain numbers


Odd = dict[str, dict[str, tuple[np.ndarray, pa.ChunkedArray]]]  # split -> column -> cells that are no numbers, as text


@dataclass(frozen=True)
class Fault:
    """Rows of a table with one and the same thing wrong."""

    kind: str
    positions: np.ndarray  # (M,) int64 in the table
    says: Callable[[int], str]  # position -> the end of a sentence that begins with the name of the row


@dataclass(frozen=True)
class Mixed:
    """A column of text that holds numbers but for a few cells."""

    numbers: pa.ChunkedArray  # int64 or float64, null where there is none
    odd: np.ndarray  # (M,) int64 positions of the cells that hold something else


def mixed_column(column: pa.ChunkedArray, *, forced: bool = False) -> Mixed | None:
    """A text column read as numbers where nearly all of its values are such; None where it is text or a set of codes.

    At least 90 % of the values must be numbers, more than 20 of them different; `forced` asks for neither.
    """
    if not pa.types.is_string(column.type) or not len(column):
        return None
    if not forced and not _looks_mixed(column.slice(0, 2000)):
        return None
    chunks, odd, start = [], [], 0
    known = 0
    for chunk in column.chunks:
        bare = pc.utf8_trim_whitespace(chunk)
        missing = pc.fill_null(pc.is_in(bare, value_set=pa.array([*MARKERS, ""])), True)
        missing = pc.or_(missing, pc.is_null(bare))
        number = pc.fill_null(pc.match_substring_regex(bare, NUMBER), False)
        strange = np.flatnonzero(np.asarray(pc.and_not(pc.invert(missing), number)))
        if not forced and len(strange):
            texts = chunk.take(pa.array(strange))
            if pc.any(pc.match_substring_regex(texts, LETTERED)).as_py():
                return None
        if not forced and pc.any(pc.match_substring_regex(bare, CODE)).as_py():
            return None
        known += len(chunk) - int(np.count_nonzero(np.asarray(missing)))
        odd.append(strange + start)
        start += len(chunk)
        cells = pc.if_else(pc.and_(number, pc.invert(missing)), bare, pa.scalar(None, pa.string()))
        chunks.append(pc.cast(pc.replace_substring_regex(cells, r"^\+", ""), pa.float64()))
    positions = np.concatenate(odd).astype(np.int64)
    numbers = pa.chunked_array(chunks, pa.float64())
    few = len(pc.unique(numbers.drop_null())) <= DISTINCT
    if not forced and (known == 0 or len(positions) > (1 - MOSTLY) * known or few):
        return None
    return Mixed(_whole(numbers), positions)


def with_numbers(
    tables: Mapping[str, pa.Table], spec: DataSpec, *, numeric: tuple[str, ...] | None = None
) -> tuple[dict[str, pa.Table], Odd]:
    """The tables of all splits with columns of numbers read as such although a few cells hold text, and these cells.

    `numeric` names the columns that must be numbers; otherwise they are those of the training rows that nearly are.
    """
    names = numeric if numeric is not None else _nearly_numbers(tables.get("train"), spec)
    out, odd = dict(tables), {}
    for split, table in tables.items():
        for name in names:
            column = table.column(name) if name in table.column_names else None
            found = None if column is None else mixed_column(column, forced=True)
            if column is not None and found is not None:
                table = table.set_column(table.column_names.index(name), name, found.numbers)
                odd.setdefault(split, {})[name] = (found.odd, column)
        out[split] = table
    return out, odd


def _nearly_numbers(train: pa.Table | None, spec: DataSpec) -> tuple[str, ...]:
    """Columns of the training rows that hold numbers but for a few cells, and the target where it must be a number."""
    if train is None:
        return ()
    kept = {*spec.text, spec.image, spec.group, spec.time}
    kept |= set(spec.label) if spec.task not in ("auto", "regression") else set()
    forced = set(spec.label) if spec.task == "regression" else set()
    names = [name for name in train.column_names if name not in kept]
    return tuple(name for name in names if mixed_column(train.column(name), forced=name in forced) is not None)


def _looks_mixed(head: pa.ChunkedArray) -> bool:
    """Whether most of the first values are numbers: the quick answer for columns of ordinary text."""
    number = pc.sum(pc.cast(pc.match_substring_regex(head, NUMBER), pa.int64())).as_py() or 0
    return number > 0.5 * max(1, len(head) - head.null_count)


def _whole(numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same numbers as int64 where all of them are whole and small."""
    known = numbers.drop_null()
    if len(known) and pc.all(pc.and_(pc.equal(known, pc.floor(known)), pc.less(pc.abs(known), 2.0**53))).as_py():
        return pc.cast(numbers, pa.int64())
    return numbers


def faults(table: pa.Table, schema: Schema, odd: Mapping[str, tuple[np.ndarray, pa.ChunkedArray]]) -> Iterator[Fault]:
    """Everything wrong with single rows of a table, read as `schema` says; a row may come up more than once.

    `odd`: column -> (positions of cells that are no numbers, the column as the text it was).
    """
    for name, (positions, texts) in odd.items():
        if name in schema.inputs or name in schema.label:
            kind = "bad-target" if name in schema.label else "not-a-number"
            yield Fault(kind, positions, _holds(texts, f"in the column {name!r}, which holds numbers"))
    columns = [name for name in schema.inputs if name in table.column_names]
    for name in (*columns, *schema.label):
        if name in table.column_names and pa.types.is_string(table.schema.field(name).type):
            found = _where(table.column(name), lambda chunk: pc.match_substring(chunk, "\0"))
            yield Fault("nul-byte", found, lambda _, name=name: f"has a NUL character in the column {name!r}")
    if schema.modality == "text":
        yield from _text_faults(table, columns)
    elif schema.modality == "table":
        yield from _number_faults(table, columns, schema)
    yield from _label_faults(table, schema)


def _text_faults(table: pa.Table, columns: list[str]) -> Iterator[Fault]:
    strings = [name for name in columns if pa.types.is_string(table.schema.field(name).type)]
    if not strings or len(strings) < len(columns):
        return
    blank = np.ones(table.num_rows, bool)
    for name in strings:
        column = table.column(name)
        full = np.zeros(table.num_rows, bool)
        full[_where(column, lambda chunk: pc.match_substring_regex(chunk, r"\S"))] = True
        blank &= ~full
        long = _where(column, lambda chunk: pc.greater(pc.utf8_length(chunk), LONGEST))
        yield Fault("huge-text", long, lambda _, name=name: f"has more than {LONGEST:,} characters in {name!r}")
    said = f"has no text in {' and '.join(map(repr, strings))}"
    yield Fault("missing-text", np.flatnonzero(blank), lambda _: said)


def _number_faults(table: pa.Table, columns: list[str], schema: Schema) -> Iterator[Fault]:
    blank = np.ones(table.num_rows, bool)
    for name in columns:
        column = table.column(name)
        if pa.types.is_floating(column.type):
            values = column.to_numpy()
            yield Fault("not-finite", np.flatnonzero(np.isinf(values)), _holds(column, f"in the column {name!r}"))
            blank &= np.isnan(values)
        elif pa.types.is_string(column.type):
            gap = np.zeros(table.num_rows, bool)
            gap[_where(column, lambda chunk: pc.is_in(pc.utf8_trim_whitespace(chunk), value_set=_gaps()))] = True
            blank &= gap | np.asarray(pc.is_null(column))
        else:
            blank &= np.asarray(pc.is_null(column))
    yield Fault("empty-row", np.flatnonzero(blank), lambda _: "has no value in any column that is used")


def _gaps() -> pa.Array:
    return pa.array([*MARKERS, ""])


def _label_faults(table: pa.Table, schema: Schema) -> Iterator[Fault]:
    """Rows without a label, in a table in which some rows have one, and targets that are no finite number."""
    if schema.task != "multilabel":
        for name in schema.label:
            if name in table.column_names:
                yield from _faults_of_label(table.column(name), name, schema)


def _faults_of_label(column: pa.ChunkedArray, name: str, schema: Schema) -> Iterator[Fault]:
    if schema.task == "regression" and (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        values = column.to_numpy().astype(np.float64)
        huge = np.flatnonzero(np.isinf(values) | (np.abs(np.nan_to_num(values, posinf=0, neginf=0)) > LARGEST_TARGET))
        yield Fault("bad-target", huge, _holds(column, f"as its target {name!r}"))
        missing = np.isnan(values)
    elif pa.types.is_floating(column.type):
        missing = np.isnan(column.to_numpy())
    elif pa.types.is_string(column.type):
        marks = pa.array([*NO_LABEL, ""] if schema.modality == "table" else [""])
        missing = np.asarray(pc.is_null(column))
        missing[_where(column, lambda chunk: pc.is_in(chunk, value_set=marks))] = True
    else:
        missing = np.asarray(pc.is_null(column))
    if not missing.all():
        yield Fault("missing-label", np.flatnonzero(missing), lambda _: f"has no label in the column {name!r}")


def _where(column: pa.ChunkedArray, test: Callable[[pa.Array], pa.Array]) -> np.ndarray:
    """(M,) int64 positions at which `test` of a chunk is true, one chunk in memory at a time."""
    found, start = [np.empty(0, np.int64)], 0
    for chunk in column.chunks:
        found.append(np.flatnonzero(np.asarray(pc.fill_null(test(chunk), False))) + start)
        start += len(chunk)
    return np.concatenate(found)


def _holds(column: pa.ChunkedArray, where: str) -> Callable[[int], str]:
    """Position -> "holds VALUE" and where."""

    def said(position: int) -> str:
        text = repr(column[position].as_py())
        return f"holds {text if len(text) <= 40 else text[:37] + '...'} {where}"

    return said
