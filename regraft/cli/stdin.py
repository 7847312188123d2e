"""Standard input as a file that can be read like any other: rows of CSV or JSONL, or one text a line."""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from regraft.errors import DataError

if TYPE_CHECKING:
    from regraft.data.dataset import Schema


@contextmanager
def readable_input(file: str, schema: Schema) -> Iterator[str]:
    """`file` itself, or for `-` a temporary copy of standard input with the suffix its content calls for."""
    if file != "-":
        yield file
        return
    if schema.modality == "image":
        raise DataError("-: images cannot be read from standard input; give a file or a folder")
    content = sys.stdin.buffer.read()
    if not content.strip():
        raise DataError("-: standard input is empty; give one text a line, or rows of CSV with a header")
    with tempfile.TemporaryDirectory(prefix="regraft-") as folder:
        copy = Path(folder) / f"stdin{suffix_of(content, schema)}"
        copy.write_bytes(content)
        yield str(copy)


def suffix_of(content: bytes, schema: Schema) -> str:
    """.jsonl for lines of objects, .csv where the first line names every input, else .txt."""
    first = content.lstrip(b"\xef\xbb\xbf").splitlines()[0].decode("utf-8", errors="replace").strip()
    if first.startswith("{"):
        return ".jsonl"
    if schema.modality == "table" or len(schema.inputs) > 1:
        return ".csv"
    fields = {cell.strip() for delimiter in ",;\t|" for cell in next(csv.reader([first], delimiter=delimiter), [])}
    return ".csv" if set(schema.inputs) <= fields else ".txt"
