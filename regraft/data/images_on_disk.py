"""The bytes of one image of a data set, wherever they are: a file of an image folder, or a cell of a Parquet file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regraft.data.archives import extracted_root
from regraft.data.dataset import Dataset, Split
from regraft.data.safe_image import MAX_BYTES
from regraft.errors import DataError


def image_bytes(dataset: Dataset, split: str, row: int) -> bytes:
    """The image file of the row with index `row` of a split, as bytes; b"" where the cell is empty."""
    part = dataset.splits[split]
    position = row if part.positions is None else int(part.positions[row])
    cell = part.table.column(dataset.schema.inputs[0])[position].as_py()
    return cell_bytes(cell, image_folders(dataset, part))


def image_folders(dataset: Dataset, part: Split) -> tuple[Path, ...]:
    """The folders that paths of images may be relative to: that of the data set, then that of the split's own file."""
    return folders_of(dataset.path, part.file)


def folders_of(path: Path, file: str) -> tuple[Path, ...]:
    """The same, for a `file` of the data set at `path`."""
    base = path if path.is_dir() else path.parent
    return (base, (base / file).parent)


def cell_bytes(value: Any, folders: tuple[Path, ...], *, what: str = "image", most: int = MAX_BYTES) -> bytes:
    """Bytes of a cell that holds an image or a sound.

    A cell is bytes, `{"bytes", "path"}` as on the Hugging Face hub, or a path in one of `folders`.

    Raises:
        DataError: no such file, one of more than `most` bytes, or one outside of the archive the data came in.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    name = str(value)
    try:
        file = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if file is None:
            raise DataError(f"the {what} {folders[0] / name} is not there; put it back or take its row out")
        root = extracted_root(folders[0])
        if root is not None and not file.resolve().is_relative_to(root):
            raise DataError(f"the {what} {name} lies outside of the archive; an archive may only name files of its own")
        if file.stat().st_size > most:
            raise DataError(f"the {what} {file} has more than {most:,} bytes; make it smaller or leave it out")
        return file.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(
            f"the {what} {name[:200]!r} cannot be read ({reason}); put it back or take its row out"
        ) from error
