"""Input columns as Python values, the form in which a preprocessor takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from regraft.data.images_on_disk import cell_bytes, image_folders
from regraft.data.stored import MARKERS
from regraft.data.wav import MAX_BYTES

if TYPE_CHECKING:
    from regraft.data.dataset import Dataset

MISSING = frozenset((*MARKERS, ""))


def raw_columns(dataset: Dataset, split: str, rows: np.ndarray) -> dict[str, list[object]]:
    """Values of the input columns for the rows with index `rows` (M,) of a split; see `Dataset.raw`."""
    part, schema = dataset.splits[split], dataset.schema
    columns: dict[str, list[object]] = {}
    for name in schema.inputs:
        values = part.take(name, np.asarray(rows, np.int64)).to_pylist()
        if schema.modality == "text":
            columns[name] = ["" if value is None else str(value) for value in values]
        elif schema.modality == "image":
            folders = image_folders(dataset, part)
            columns[name] = [cell_bytes(value, folders) for value in values]
        elif schema.modality == "audio":
            folders = image_folders(dataset, part)
            columns[name] = [cell_bytes(value, folders, what="sound", most=MAX_BYTES) for value in values]
        else:
            columns[name] = table_values(values, is_bool=pa.types.is_boolean(part.table.column(name).type))
    return columns


def table_values(values: list[object], *, is_bool: bool) -> list[object]:
    """Cells of a table as int, float or str; None for the marks of a missing value and for NaN; truth values as 0 and 1."""
    if is_bool:
        return [None if value is None else int(bool(value)) for value in values]
    return [None if value in MISSING or value != value else value for value in values]
