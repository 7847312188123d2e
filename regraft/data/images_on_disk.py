"""The bytes of one image of a data set, wherever they are: a file of an image folder, or a cell of a Parquet file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regraft.data.dataset import Dataset, Split
from regraft.errors import DataError


def image_bytes(dataset: Dataset, split: str, row: int) -> bytes:
    """The image file of the row with index `row` of a split, as bytes; b"" where the cell is empty."""
    part = dataset.splits[split]
    position = row if part.positions is None else int(part.positions[row])
    cell = part.table.column(dataset.schema.inputs[0])[position].as_py()
    return cell_bytes(cell, image_folders(dataset, part))


def image_folders(dataset: Dataset, part: Split) -> tuple[Path, ...]:
    """The folders that paths of images may be relative to: that of the data set, then that of the split's own file."""
    base = dataset.path if dataset.path.is_dir() else dataset.path.parent
    return (base, (base / part.file).parent)


def cell_bytes(value: Any, folders: tuple[Path, ...]) -> bytes:
    """Bytes of an image cell: bytes, `{"bytes", "path"}` as on the Hugging Face hub, or a path in one of `folders`."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    file = next((folder / value for folder in folders if (folder / value).is_file()), folders[0] / value)
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(
            f"the image {file} cannot be read ({error.strerror}); put it back or take its row out"
        ) from error
