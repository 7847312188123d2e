"""The bytes of one image of a data set, wherever they are: a file of an image folder, or a cell of a Parquet file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regraft.data.dataset import Dataset
from regraft.errors import DataError


def image_bytes(dataset: Dataset, split: str, row: int) -> bytes:
    """The image file of the row with index `row` of a split, as bytes; b"" where the cell is empty."""
    part = dataset.splits[split]
    column = dataset.schema.inputs[0]
    position = row if part.positions is None else int(part.positions[row])
    return cell_bytes(part.table.column(column)[position].as_py(), dataset.path)


def cell_bytes(value: Any, base: Path) -> bytes:
    """Bytes of an image cell: bytes, `{"bytes", "path"}` as on the Hugging Face hub, or a path relative to `base`."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    file = (base if base.is_dir() else base.parent) / str(value)
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"the image {file} cannot be read ({error.strerror}); put it back or take its row out") from error
