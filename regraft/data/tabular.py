"""Which reader a file needs, by its suffix, and the rows it gives."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pyarrow as pa

from regraft.config.data import DataSpec
from regraft.data.delimited import DelimitedReader, decode_odd
from regraft.data.formats import arrow_batches, idx_batches, json_batches, parquet_batches
from regraft.data.sniff import SAMPLE_BYTES, detect_encoding, sniff
from regraft.data.stored import Stored, stored
from regraft.errors import DataError

BY_SUFFIX = {
    ".jsonl": json_batches,
    ".ndjson": json_batches,
    ".json": json_batches,
    ".parquet": parquet_batches,
    ".arrow": arrow_batches,
}


def read_stored(
    kind: str, files: tuple[Path, ...], spec: DataSpec, *, floor: dict[str, pa.DataType] | None = None
) -> Stored:
    """The rows of the files of one split; columns named in `floor` are read as that type or a wider one."""
    for file in files:
        if file.stat().st_size == 0:
            raise DataError(f"{file} is empty; it must hold at least one row")
    suffix = files[0].suffix.lower()
    if kind == "idx":
        return stored(files, ("idx",), floor or {}, partial(idx_batches, files))
    if suffix in BY_SUFFIX:
        return stored(files, (suffix,), floor or {}, partial(BY_SUFFIX[suffix], files))
    dialects = tuple(
        sniff(file, encoding=spec.encoding, delimiter=spec.delimiter, quoting=spec.quoting) for file in files
    )
    options = [[one.encoding, one.delimiter, one.quoting] for one in dialects]
    return stored(files, ("delimited", options), floor or {}, DelimitedReader(files, dialects))


def text_lines(file: Path) -> list[str]:
    """The lines of a text file in its detected encoding, one text each, blank ones as ""."""
    return whole_text(file).splitlines()


def paragraphs(file: Path) -> list[str]:
    """The parts of a text file between blank lines, in its detected encoding."""
    return [part.strip() for part in re.split(r"\n[^\S\n]*\n", "\n".join(text_lines(file))) if part.strip()]


def whole_text(file: Path) -> str:
    """All of a text file in its detected encoding, without a byte-order mark."""
    raw = file.read_bytes()
    encoding, _ = detect_encoding(raw[:SAMPLE_BYTES])
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        text = decode_odd(raw)
    return text.lstrip("\ufeff")
