"""A split of a data set, encoded chunk by chunk in memory or in memory-mapped files, and preprocessors to and from JSON."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from regraft.data.dataset import Dataset
from regraft.data.encoded import Encoded
from regraft.data.images import ImagePreprocessor
from regraft.data.sounds import SoundPreprocessor
from regraft.data.tables import TablePreprocessor
from regraft.data.text import EncodedText, TextColumns, TextPreprocessor
from regraft.errors import DataError, RunError, suggest

AnyPreprocessor = TextPreprocessor | ImagePreprocessor | TablePreprocessor | SoundPreprocessor
CHUNK = {"text": 10_000, "image": 256, "audio": 256, "table": 50_000}  # rows held as Python values at once
FIT_ROWS = 200_000  # rows a table preprocessor is fitted on at most: medians and quartiles need no more
FIT_SOUNDS = 200  # sounds that settings are fitted on at most
FILE = "preprocessing.json"


class Storable(Encoded, Protocol):
    """Encoded examples that can be stored as arrays."""

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be stored; chunks of it are joined along the first dimension."""
        ...


def encode_split(
    dataset: Dataset,
    split: str,
    preprocessor: AnyPreprocessor,
    *,
    rows: np.ndarray | None = None,
    folder: Path | None = None,
) -> Encoded:
    """The examples of a split, or of some of its rows, ready for a model.

    Args:
        dataset: where the rows are.
        split: name of the split.
        preprocessor: fitted and ready.
        rows: positions (M,) within the split, in the order wanted; default all.
        folder: where to keep the arrays memory-mapped, one folder inside it for each (data, split, rows, preprocessor); what
            is there already is opened again. Without it they are held in memory.

    Raises:
        DataError: the split is absent, or a row cannot be encoded; the row is named.
    """
    if split not in dataset.splits:
        raise DataError(f"the data has no {split!r} split{suggest(split, dataset.splits)}")
    rows = np.arange(len(dataset.splits[split]), dtype=np.int64) if rows is None else np.asarray(rows, dtype=np.int64)
    chunks = (
        preprocessor.encode(dataset.raw(split, part), names=row_names(dataset, split, part)).arrays()
        for part in _parts(rows, CHUNK[dataset.schema.modality])
    )
    if folder is None:
        return _with_origin(preprocessor.restore(_joined(chunks)), dataset, split, rows, preprocessor)
    at = folder / _key(dataset, split, rows, preprocessor)
    if not (at / "arrays.json").exists():
        store_arrays(at, chunks)
    return _with_origin(preprocessor.restore(open_arrays(at)), dataset, split, rows, preprocessor)


@dataclass(frozen=True)
class SplitTexts:
    """The raw texts of encoded rows of a split, see `data.text.Origin`."""

    dataset: Dataset
    split: str
    rows: np.ndarray  # (N,) positions within the split of the encoded examples
    preprocessor: TextPreprocessor

    @property
    def tokenizer(self) -> Any:
        """The model's."""
        return self.preprocessor.tokenizer

    def texts(self, rows: np.ndarray, /) -> TextColumns:
        """The raw texts of the examples `rows` (M,)."""
        raw = self.dataset.raw(self.split, self.rows[rows])
        return {name: [str(value) for value in raw[name]] for name in self.preprocessor.columns}

    def encode(self, columns: TextColumns, /) -> EncodedText:
        """Other texts, encoded in the same way."""
        return self.preprocessor.encode({name: list(texts) for name, texts in columns.items()})


def _with_origin(
    encoded: Encoded, dataset: Dataset, split: str, rows: np.ndarray, preprocessor: AnyPreprocessor
) -> Encoded:
    """Encoded texts with where they came from; other examples as they are."""
    if not isinstance(encoded, EncodedText) or not isinstance(preprocessor, TextPreprocessor):
        return encoded
    return replace(encoded, origin=SplitTexts(dataset, split, rows, preprocessor))


def row_names(dataset: Dataset, split: str, rows: np.ndarray) -> list[str]:
    """What to call rows in an error: the image file, else the file of the split and the 0-based data row in it."""
    part = dataset.splits[split]
    if dataset.schema.modality == "image" and "file" in part.column_names:
        return [str(name) for name in part.take("file", rows).to_pylist()]
    return [f"{part.file} row {row}" for row in part.rows[rows]]


def _parts(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for at in range(0, max(1, len(rows)), size):
        yield rows[at : at + size]


def _joined(chunks: Iterator[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    parts = list(chunks)
    return {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}


def _key(dataset: Dataset, split: str, rows: np.ndarray, preprocessor: AnyPreprocessor) -> str:
    """A folder name that changes with anything the encoded arrays depend on."""
    digest = hashlib.sha256(json.dumps([dataset.fingerprint, split, preprocessor.fingerprint]).encode())
    digest.update(dataset.splits[split].rows[rows].tobytes())
    return f"{split}-{digest.hexdigest()[:24]}"


class _Growing:
    """A .npy file that grows along its first dimension; the header has room for the final length."""

    def __init__(self, file: BinaryIO, like: np.ndarray) -> None:
        self.file, self.dtype, self.shape = file, like.dtype, like.shape[1:]
        self.length = 0
        self._write_header()
        self.start = file.tell()

    def _write_header(self) -> None:
        np.lib.format.write_array_header_1_0(
            self.file,
            {
                "descr": np.lib.format.dtype_to_descr(self.dtype),
                "fortran_order": False,
                "shape": (self.length, *self.shape),
            },
        )

    def append(self, array: np.ndarray) -> None:
        """Write rows at the end."""
        if array.dtype != self.dtype or array.shape[1:] != self.shape:
            raise ValueError(f"rows must be {self.dtype} {self.shape}, got {array.dtype} {array.shape[1:]}")
        self.file.write(np.ascontiguousarray(array).data)
        self.length += len(array)

    def finish(self) -> None:
        """Write the final length into the header."""
        self.file.seek(0)
        self._write_header()
        if self.file.tell() != self.start:
            raise AssertionError("the header of a growing .npy file changed its size")
        self.file.flush()
        os.fsync(self.file.fileno())


def store_arrays(folder: Path, chunks: Iterator[dict[str, np.ndarray]]) -> None:
    """Write arrays chunk by chunk as .npy files; the folder appears when they are whole, or not at all.

    Raises:
        RunError: they cannot be written, such as on a full disk.
    """
    beside = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    growing: dict[str, _Growing] = {}
    try:
        beside.mkdir(parents=True)
        for chunk in chunks:
            for name, array in chunk.items():
                if name not in growing:
                    growing[name] = _Growing((beside / f"{name}.npy").open("wb"), array)
                growing[name].append(array)
        for part in growing.values():
            part.finish()
        (beside / "arrays.json").write_text(json.dumps(sorted(growing)), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    except OSError as error:
        raise RunError(f"the encoded examples cannot be written to {folder}: {error.strerror or error}") from None
    finally:
        for part in growing.values():
            part.file.close()
        shutil.rmtree(beside, ignore_errors=True)


def open_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a folder written by `store_arrays`, memory-mapped and read-only."""
    names = json.loads((folder / "arrays.json").read_text(encoding="utf-8"))
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}


def preprocessor_for(dataset: Dataset, model_folder: str | Path | None) -> AnyPreprocessor:
    """The preprocessor that a model folder and the schema of a data set call for; that of a table is fitted on `train`.

    Args:
        dataset: its schema says what the columns are.
        model_folder: a transformers folder; None for tables, which are read by a plain network.

    Raises:
        DataError: text or images without a model folder.
    """
    schema = dataset.schema
    if schema.modality == "table":
        return fit_table(dataset)
    if schema.modality == "audio":
        return fit_sounds(dataset)
    if model_folder is None:
        raise DataError(f"{schema.modality} data needs a model folder, which says how its inputs are prepared")
    if schema.modality == "text":
        return TextPreprocessor.from_model(model_folder, columns=schema.inputs)
    return ImagePreprocessor.from_model(model_folder, column=schema.inputs[0])


def fit_table(dataset: Dataset, *, rows: np.ndarray | None = None) -> TablePreprocessor:
    """The table preprocessor of the training rows; of at most 200,000 of them, evenly spaced.

    Args:
        dataset: a table.
        rows: positions within `train` to fit on; default all.
    """
    rows = np.arange(len(dataset.splits["train"]), dtype=np.int64) if rows is None else rows
    if len(rows) > FIT_ROWS:
        rows = rows[np.linspace(0, len(rows) - 1, FIT_ROWS).astype(np.int64)]
    schema = dataset.schema
    categorical = tuple(column for column in schema.inputs if column not in schema.numeric)
    numeric = tuple(column for column in schema.inputs if column in schema.numeric)
    return TablePreprocessor.fit(dataset.raw("train", rows), numeric=numeric, categorical=categorical)


def fit_sounds(dataset: Dataset) -> SoundPreprocessor:
    """The preprocessor of sounds, fitted on at most 200 training rows, evenly spaced."""
    total = len(dataset.splits["train"])
    rows = np.unique(np.linspace(0, total - 1, min(total, FIT_SOUNDS)).astype(np.int64))
    (column,) = dataset.schema.inputs
    return SoundPreprocessor.fit(dataset.raw("train", rows)[column], column, names=row_names(dataset, "train", rows))


def preprocessor_from_json(folder: str | Path, data: Mapping[str, Any]) -> AnyPreprocessor:
    """The preprocessor again from its JSON; `folder` holds the tokenizer's files if it is one for text.

    Raises:
        RunError: an unknown kind.
    """
    match data.get("kind"):
        case "text":
            return TextPreprocessor.from_json(folder, data)
        case "image":
            return ImagePreprocessor.from_json(data)
        case "table":
            return TablePreprocessor.from_json(data)
        case "audio":
            return SoundPreprocessor.from_json(data)
        case kind:
            raise RunError(
                f"{folder}: no preprocessor is of kind {kind!r}{suggest(str(kind), ('text', 'image', 'audio', 'table'))}"
            )


def save_preprocessor(preprocessor: AnyPreprocessor, folder: Path) -> None:
    """Write `preprocessing.json` and, for text, the tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocessor.save_files(folder)
    (folder / FILE).write_text(json.dumps(preprocessor.to_json(), indent=1, ensure_ascii=False), encoding="utf-8")


def load_preprocessor(folder: Path, *, tokenizer: Path | None = None) -> AnyPreprocessor:
    """The preprocessor that `save_preprocessor` wrote; the tokenizer's files may lie in another folder, `tokenizer`.

    Raises:
        RunError: the file is absent or damaged.
    """
    try:
        data = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{folder} has no {FILE}, so how its inputs are prepared is not known") from None
    except ValueError as error:
        raise RunError(f"{folder / FILE} is damaged: {error}") from None
    return preprocessor_from_json(tokenizer or folder, data)
