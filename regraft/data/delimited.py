"""CSV, TSV and their kin as record batches: bytes first, then text row by row, then numbers where every value is one."""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)
from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from regraft.data.sniff import Dialect
from regraft.data.stored import MARKERS, Again, Log, Types
from regraft.errors import DataError

BLOCK = 4 << 20  # bytes read at a time; with 16 MiB the process grows by 450 MB more (measured on a 1 GB file)
LARGEST_BLOCK = 1 << 30  # a single row may be this long
BYTE_ENCODINGS = (
    "utf-8",
    "ascii",
    "cp1252",
    "iso8859-1",
    "iso8859-15",
    "cp1250",
    "cp1251",
)  # delimiters are ASCII bytes in them


class DelimitedReader:
    """Batches of some delimited files in one dialect each; keeps the block size that turned out to be needed."""

    def __init__(self, files: tuple[Path, ...], dialects: tuple[Dialect, ...]) -> None:
        self.files, self.dialects, self.block = files, dialects, BLOCK

    def __call__(self, types: Types, log: Log) -> Iterator[pa.RecordBatch]:
        """All rows; those with a wrong number of fields go to `log`, as do those not in the encoding of their file."""
        position = 0
        for path, dialect in zip(self.files, self.dialects, strict=True):
            log.reasons.extend(reason for reason in dialect.reasons if reason not in log.reasons)
            decoder = _Decoder(path, dialect.encoding)
            try:
                for batch in _byte_batches(path, dialect, decoder, log, block=self.block):
                    arrays = decoder.decode(batch, position, log)
                    position += batch.num_rows
                    typed = [_typed(array, types, name) for array, name in zip(arrays, batch.schema.names, strict=True)]
                    yield pa.RecordBatch.from_arrays(typed, names=batch.schema.names)
            except pa.ArrowInvalid as error:
                if "straddling" not in str(error) or self.block >= LARGEST_BLOCK:
                    raise DataError(_unparsable(path, dialect, error)) from error
                self.block = min(8 * self.block, LARGEST_BLOCK)
                raise Again from error
            except UnicodeDecodeError as error:
                message = f"{path} is not {dialect.encoding} ({error.reason}); give its encoding with --set data.encoding=NAME"
                raise DataError(message) from error


class _Decoder:
    """Turns the bytes of cells into text, noting the rows that are not in the encoding of the file."""

    def __init__(self, path: Path, encoding: str) -> None:
        self.name = codecs.lookup(encoding).name.replace("_", "-")
        self.bytewise = self.name in BYTE_ENCODINGS
        # Arrow cannot report a row with both a wrong number of fields and bytes that are not UTF-8, so a file with such
        # bytes is passed through it as Latin-1, which maps each byte to one character and back
        self.disguised = self.bytewise and not _is_utf8(path)
        self.transcode = "latin-1" if self.disguised else "" if self.bytewise else self.name

    def decode(self, batch: pa.RecordBatch, position: int, log: Log) -> list[pa.Array]:
        """The columns of a batch of bytes as text; `position` is that of its first row in the table."""
        odd: set[int] = set()
        arrays = [self._column(column, odd) for column in batch.columns]
        wanted = "UTF-8" if self.name == "utf-8" else self.name
        message = f"is not {wanted} and was read as Windows-1252"
        log.encoding.extend((position + row, message) for row in sorted(odd))
        return arrays

    def _column(self, column: pa.Array, odd: set[int]) -> pa.Array:
        if not self.disguised:
            return column.cast(pa.string())
        if pc.all(pc.string_is_ascii(column.cast(pa.string()))).as_py() is not False:
            return column.cast(pa.string())
        texts: list[str | None] = []
        for row, value in enumerate(column.to_pylist()):
            text, as_it_should = _text(None if value is None else value.decode("utf-8").encode("latin-1"), self.name)
            texts.append(text)
            if not as_it_should:
                odd.add(row)
        return pa.array(texts, pa.string())


def _text(value: bytes | None, encoding: str) -> tuple[str | None, bool]:
    """(text, whether it was in `encoding`) of one cell."""
    if value is None:
        return None, True
    try:
        return value.decode(encoding), True
    except UnicodeDecodeError:
        return decode_odd(value), False


def decode_odd(value: bytes) -> str:
    """Text of bytes that are not in their encoding: Windows-1252, or Latin-1 where even that has no such character."""
    try:
        return value.decode("cp1252")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _byte_batches(path: Path, dialect: Dialect, decoder: _Decoder, log: Log, *, block: int) -> Iterator[pa.RecordBatch]:
    """Batches of binary columns (empty cell: null); records with a wrong number of fields are noted and left out."""
    names = [name or f"unnamed_{number}" for number, name in enumerate(dialect.header)]
    blank = _blank_lines(path) if decoder.bytewise else 0
    first, good = log.total, 0

    def leave_out(row: Any) -> str:
        record = first + row.number - blank - 2  # Arrow counts from 1, with the header and the blank lines before it
        fields = "field" if row.actual_columns == 1 else "fields"
        log.bad.append(("field-count", record, f"has {row.actual_columns} {fields} instead of {row.expected_columns}"))
        return "skip"

    before = len(log.bad)
    read = csv.ReadOptions(block_size=block, use_threads=False, column_names=names, skip_rows_after_names=1 + blank)
    quoted = dialect.quoting == "minimal"
    parse = csv.ParseOptions(
        delimiter=dialect.delimiter,
        quote_char='"' if quoted else False,
        newlines_in_values=quoted,
        invalid_row_handler=leave_out,
    )
    convert = csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.binary()),
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
        null_values=[""],
    )
    with path.open("rb") as stream:
        source = (
            pa.transcoding_input_stream(pa.PythonFile(stream), decoder.transcode, "utf-8")
            if decoder.transcode
            else stream
        )
        with csv.open_csv(source, read_options=read, parse_options=parse, convert_options=convert) as batches:
            for batch in batches:
                good += batch.num_rows
                if batch.num_rows:
                    yield batch
    log.total = first + good + len(log.bad) - before


def _typed(array: pa.Array, types: Types, name: str) -> pa.Array:
    """The column as int64 or float64 where all of its values so far are such numbers, else as the text it is."""
    if types.columns.get(name) == pa.string():
        return array
    numbers = as_numbers(array)
    kind = types.widen(name, pa.string() if numbers is None else numbers.type)
    if kind == pa.string() or numbers is None:
        return array
    return numbers.cast(kind)


def as_numbers(array: pa.Array) -> pa.Array | None:
    """Text as int64 or float64, null where empty or a mark for missing; None where some value is no number.

    `007` and numbers of more than 15 digits stay text: they are codes, and would not come back as they were.
    """
    trimmed = pc.utf8_trim_whitespace(array)
    missing = pc.is_in(trimmed, value_set=pa.array([*MARKERS, ""]))
    trimmed = pc.if_else(missing, pa.scalar(None, pa.string()), trimmed)
    if trimmed.null_count == len(trimmed):
        return pa.nulls(len(trimmed))
    codes = pc.match_substring_regex(trimmed, r"^[-+]?(0\d|\d{16,}$)")
    if pc.any(codes).as_py():
        return None
    for kind in (pa.int64(), pa.float64()):
        try:
            return trimmed.cast(kind)
        except pa.ArrowInvalid:
            continue
    return None


def _is_utf8(path: Path) -> bool:
    """Whether a whole file is UTF-8, read a block at a time."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            try:
                decoder.decode(block)
            except UnicodeDecodeError:
                return False
    return not decoder.getstate()[0]


def _blank_lines(path: Path) -> int:
    """How many blank lines stand before the header."""
    blank = 0
    with path.open("rb") as stream:
        for line in stream:
            if line.strip(b"\xef\xbb\xbf\r\n"):
                break
            blank += 1
    return blank


def _unparsable(path: Path, dialect: Dialect, error: Exception) -> str:
    """The sentence for a file whose quotation marks do not pair up, or that is broken in another way."""
    if dialect.quoting == "minimal":
        return f"{path} has a quotation mark that is never closed; try --set data.quoting=none ({error})"
    return f"{path} cannot be read as delimited text ({error}); give --set data.delimiter"
