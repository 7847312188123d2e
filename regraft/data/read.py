"""A data set from whatever lies at a path: find the files, map them, detect the schema, name the classes, cut the splits."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from regraft.config.data import DataSpec
from regraft.data.archives import extracted, is_archive
from regraft.data.bad import Odd, with_numbers
from regraft.data.bad_policy import Purpose, Settled, settle
from regraft.data.cache import files_sha256
from regraft.data.dataset import LANGUAGE, SPLITS, Dataset, Problem, Schema, Split
from regraft.data.detect import detect
from regraft.data.files import Layout, find_layout, images_in, missing_path
from regraft.data.labels import class_values, encode_targets, multilabel_values
from regraft.data.partition import divide
from regraft.data.profile import profile, sample_of
from regraft.data.samples import SAMPLES, sample_path
from regraft.data.select import take
from regraft.data.stored import Stored, wider
from regraft.data.tabular import paragraphs, read_stored, text_lines
from regraft.errors import DataError, suggest


@dataclass(frozen=True, kw_only=True)
class Part:
    """One split as it was read, before anything is cut."""

    table: pa.Table
    rows: np.ndarray
    name: str  # of its file or folder, relative to the data set
    stored: Path | None = None  # the Arrow file behind the table


@dataclass(frozen=True, kw_only=True)
class Parts:
    """All that was read from a data set."""

    parts: Mapping[str, Part]
    problems: tuple[Problem, ...]
    reasons: tuple[str, ...]
    class_names: Mapping[str, list[str]]
    files: tuple[Path, ...]  # whose bytes make the data set


def load(spec: DataSpec, *, keep_bad: bool = False) -> Dataset:
    """The data set at `spec.path`, its schema detected where it is not given, its missing splits cut off.

    A bad row (`bad.KINDS`) stops with its file and row, or is left out and counted where `spec.on_bad_sample` is "skip".
    With `keep_bad`, for an audit, all rows that can be read are there and the others are listed in `problems`. DataError in
    one sentence where nothing can be done: nothing is found, a column is not there, there is no label, no training row, or
    one class only.
    """
    path, layout = _locate(spec, loose=spec.task == LANGUAGE)
    read = _read(layout, spec)
    if "train" not in read.parts:
        raise DataError(
            f"{spec.path} holds no training rows, only {' and '.join(read.parts)}; add a train file or folder"
        )
    tables, odd = with_numbers({name: part.table for name, part in read.parts.items()}, spec)
    read = _with_tables(read, tables)
    if layout.kind == "images":
        schema = _image_schema(spec)
    else:
        train = read.parts["train"]
        sample = sample_of(train.table)
        profiles = {name: profile(sample, name) for name in train.table.column_names}
        schema = detect(train.table, profiles, spec, rows=len(train.rows), names=read.class_names)
    if not schema.label and schema.task != LANGUAGE:
        columns = ", ".join(read.parts["train"].table.column_names)
        raise DataError(f"{spec.path}: no column looks like a label; give it with --label, one of: {columns}")
    read, schema = _without_labels(read, schema)
    purpose = "audit" if keep_bad else "train"
    settled = _settled(read, schema, spec, path, odd, images=layout.kind != "idx", purpose=purpose)
    read = _named_labels(read, schema)
    schema = _with_classes(read, schema, spec, settled.dropped)
    schema = replace(schema, reasons=(*read.reasons, *schema.reasons))
    splits, reasons = divide(read.parts, schema, spec, path, dropped=settled.dropped)
    return Dataset(
        path=path,
        schema=replace(schema, reasons=(*schema.reasons, *reasons)),
        splits=splits,
        problems=settled.problems,
        given=frozenset(read.parts),
        skipped=settled.skipped,
        fingerprint=_fingerprint(read.files, path, schema, splits),
    )


def load_as(spec: DataSpec, schema: Schema) -> Dataset:
    """New data read with the schema of an earlier run, for prediction and evaluation: nothing is detected and nothing cut.

    One file is the split "test". Columns of inputs must be there; a label column need not be, its targets are then missing.
    Rows with a bad input stop or are left out as in `load`, but any number of them may be left out; labels are not judged.
    """
    path, layout = _locate(spec, loose=True)
    read = _read(layout, spec, column=schema.inputs[0])
    parts = dict(read.parts)
    if list(parts) == ["train"]:
        parts = {"test": parts["train"]}
    for name, part in parts.items():
        _need_inputs(part, schema, name)
    problems = tuple(replace(p, split="test") if p.split not in parts else p for p in read.problems)
    tables, odd = with_numbers({name: part.table for name, part in parts.items()}, spec, numeric=schema.numeric)
    read = _with_tables(replace(read, parts=parts, problems=problems), tables)
    loose = spec.replaced(most_bad=0.999999, left_out=None)
    settled = _settled(read, replace(schema, label=()), loose, path, odd, images=layout.kind != "idx", purpose="use")
    parts = _named_labels(read, schema).parts
    splits = {name: _without(part, name, settled.dropped.get(name)) for name, part in parts.items()}
    return Dataset(
        path=path,
        schema=schema,
        splits=splits,
        problems=settled.problems,
        skipped=settled.skipped,
        given=frozenset(splits),
        fingerprint=_fingerprint(read.files, path, schema, splits),
    )


def _without(part: Part, name: str, dropped: np.ndarray | None) -> Split:
    """A part as a split, without some positions."""
    if dropped is None:
        return Split(name=name, file=part.name, table=part.table, rows=part.rows)
    kept = np.delete(np.arange(part.table.num_rows), dropped)
    return Split(name=name, file=part.name, table=part.table, rows=part.rows[kept], positions=kept)


def _with_tables(read: Parts, tables: Mapping[str, pa.Table]) -> Parts:
    """The same parts with other columns."""
    return replace(read, parts={name: replace(part, table=tables[name]) for name, part in read.parts.items()})


def _settled(
    read: Parts, schema: Schema, spec: DataSpec, path: Path, odd: Odd, *, images: bool, purpose: Purpose
) -> Settled:
    """What is done with the bad rows of what was read."""
    files = files_sha256(sorted(read.files), path if path.is_dir() else path.parent)
    return settle(read.parts, read.problems, schema, spec, path, odd=odd, files=files, images=images, purpose=purpose)


def _locate(spec: DataSpec, *, loose: bool = False) -> tuple[Path, Layout]:
    """(path on this machine, what lies there) of an embedded sample, a path or a hub id."""
    if spec.path in SAMPLES:
        path = sample_path(spec.path)
        return path, find_layout(path)
    path = Path(spec.path).expanduser()
    if path.is_file() and is_archive(path):
        path = extracted(path)
    if path.exists():
        return path, find_layout(path, loose=loose)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", spec.path) and not path.parent.is_dir() and not path.suffix:
        path = _from_hub(spec.path)
        return path, find_layout(path)
    hint = suggest(spec.path, SAMPLES) if "/" not in spec.path else ""
    raise DataError(missing_path(path) + (hint if hint.startswith("; did") else ""))


def _from_hub(name: str) -> Path:
    """The folder of a hub data set, fetched where it is not in the hub's own cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type="dataset"))
    except (
        Exception
    ) as error:  # the hub client raises errors of httpx, of its own and OSError for one and the same thing
        raise DataError(
            f"{name!r} is no path on this machine, and the Hugging Face hub did not give a data set of that name "
            f"({type(error).__name__}); check the name and the network, or give a local path"
        ) from error


def _read(layout: Layout, spec: DataSpec, *, column: str = "text") -> Parts:
    """All splits of a layout, read and mapped, each column with one type in all of them; lines of text go to `column`."""
    if layout.kind == "images":
        return _read_images(layout)
    if layout.kind == "lines":
        (file,) = layout.files["test"]
        if spec.task == LANGUAGE:
            return _read_paragraphs(file)
        table = pa.table({column: pa.array(text_lines(file), pa.string())})
        part = Part(table=table, rows=np.arange(table.num_rows, dtype=np.int64), name=file.name)
        return Parts(parts={"test": part}, problems=(), reasons=(), class_names={}, files=(file,))
    stored = {split: read_stored(layout.kind, files, spec) for split, files in layout.files.items()}
    stored = _one_type(stored, layout, spec)
    problems: list[Problem] = []
    for split, entry in stored.items():
        name = layout.name_of(split)
        for kind, row, message in entry.problems:
            said = f"row {row} of {name} {message}"
            problems.append(Problem(kind=kind, split=split, row=row, file=name, message=said))
        if not entry.table.num_rows:
            raise DataError(
                f"{layout.root / name} has a header but no rows that can be read; it must hold at least one"
            )
    parts = {
        split: Part(table=entry.table, rows=entry.rows, name=layout.name_of(split), stored=entry.path)
        for split, entry in stored.items()
    }
    names = {column: found for entry in stored.values() for column, found in entry.class_names.items()}
    return Parts(
        parts=parts,
        problems=tuple(problems),
        reasons=tuple(dict.fromkeys(reason for entry in stored.values() for reason in entry.reasons)),
        class_names=names or _classes_file(layout),
        files=tuple(file for files in layout.files.values() for file in files),
    )


def _read_paragraphs(file: Path) -> Parts:
    """What a language model learns from in a text file: the paragraphs between its blank lines, all for training."""
    table = pa.table({"text": pa.array(paragraphs(file), pa.string())})
    part = Part(table=table, rows=np.arange(table.num_rows, dtype=np.int64), name=file.name)
    said = f"the rows are the {table.num_rows:,} paragraphs of {file.name}, between blank lines"
    return Parts(parts={"train": part}, problems=(), reasons=(said,), class_names={}, files=(file,))


def _one_type(stored: dict[str, Stored], layout: Layout, spec: DataSpec) -> dict[str, Stored]:
    """The same splits, those read again in which a column has a narrower type than in another split."""
    widest: dict[str, pa.DataType] = {}
    for entry in stored.values():
        for one in entry.table.schema:
            widest[one.name] = wider(widest.get(one.name, one.type), one.type)
    out = {}
    for split, entry in stored.items():
        narrow = {one.name: widest[one.name] for one in entry.table.schema if one.type != widest[one.name]}
        out[split] = read_stored(layout.kind, layout.files[split], spec, floor=narrow) if narrow else entry
    return out


def _read_images(layout: Layout) -> Parts:
    """Image folders as tables of `file` and `label`."""
    parts: dict[str, Part] = {}
    problems: list[Problem] = []
    for split, (folder,) in layout.files.items():
        images, odd = images_in(folder, split=split, root=layout.root)
        problems += odd
        table = pa.table(
            {
                "file": pa.array([file for file, _ in images], pa.string()),
                "label": pa.array([name or None for _, name in images], pa.string()),
            }
        )
        parts[split] = Part(table=table, rows=np.arange(len(images), dtype=np.int64), name=layout.name_of(split))
    files = tuple(layout.root / file for part in parts.values() for file in part.table.column("file").to_pylist())
    return Parts(parts=parts, problems=tuple(problems), reasons=(), class_names={}, files=files)


def _image_schema(spec: DataSpec) -> Schema:
    """The schema of image class folders, which leaves nothing to detect but the number of classes."""
    if spec.modality not in ("auto", "image") or spec.text or spec.features:
        raise DataError(
            f"{spec.path} is a folder of images, so --modality can only be image and --text and --features cannot be given"
        )
    if spec.task in ("regression", "multilabel", LANGUAGE):
        raise DataError(
            f"--task {spec.task}: class folders give one class for each image; for other labels give a table with --image"
        )
    if set(spec.label) - {"label"} or spec.group or spec.time:
        raise DataError(f"{spec.path} is a folder of images, which has no columns for --label, --group or --time")
    reasons = ("the classes are the names of the image folders",)
    return Schema(modality="image", inputs=("file",), label=("label",), task="multiclass", reasons=reasons)


def _classes_file(layout: Layout) -> dict[str, list[str]]:
    """Names for integer labels from a `classes.json` beside the data, under the column name "*"."""
    file = layout.root / "classes.json"
    if not file.is_file():
        return {}
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file} is not valid JSON ({error}); it must be a list of class names, or be taken away"
        ) from error
    fits = isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    return {"*": names} if fits else {}


def _need_inputs(part: Part, schema: Schema, split: str) -> None:
    """DataError where a file lacks a column that the model is given."""
    for name in schema.inputs:
        if name not in part.table.column_names:
            hint = suggest(name, part.table.column_names)
            raise DataError(f"{part.name} ({split}) has no column called {name!r}, which is an input{hint}")


def _without_labels(read: Parts, schema: Schema) -> tuple[Parts, Schema]:
    """Given splits must hold the inputs; a valid or test file without the label is read as unlabelled, and said to be."""
    parts, reasons = dict(read.parts), []
    for split, part in read.parts.items():
        _need_inputs(part, schema, split)
        if split in ("valid", "test") and not set(schema.label) <= set(part.table.column_names):
            if "unlabelled" in read.parts:
                raise DataError(f"{part.name} has no column {schema.label[0]!r}; give it labels or take it away")
            parts["unlabelled"] = parts.pop(split)
            reasons.append(
                f"{part.name} has no column {schema.label[0]!r}, so it is read as unlabelled and {split} is cut from train"
            )
    return replace(read, parts=parts), replace(schema, reasons=(*schema.reasons, *reasons))


def _named_labels(read: Parts, schema: Schema) -> Parts:
    """The same parts with integer labels replaced by their names, where the data brings names for them."""
    if len(schema.label) != 1 or schema.task == "regression":
        return read
    label = schema.label[0]
    names = read.class_names.get(label) or read.class_names.get("*")
    columns = [part.table.column(label) for part in read.parts.values() if label in part.table.column_names]
    if not names or not columns or not all(pa.types.is_integer(column.type) for column in columns):
        return read
    values = np.concatenate([column.drop_null().to_numpy() for column in columns])
    known = values[values >= 0]  # the hub writes -1 for "no label"
    if not len(known) or known.max() >= len(names):
        return read
    lookup = pa.array(names, pa.string())
    parts = {}
    for split, part in read.parts.items():
        if label in part.table.column_names:
            ids = part.table.column(label).combine_chunks()
            ids = pa.array(
                ids.to_numpy(zero_copy_only=False), pa.int64(), mask=np.asarray(ids.to_numpy(zero_copy_only=False) < 0)
            )
            place = part.table.column_names.index(label)
            part = replace(part, table=part.table.set_column(place, label, lookup.take(ids)))
        parts[split] = part
    return replace(read, parts=parts)


def _with_classes(read: Parts, schema: Schema, spec: DataSpec, dropped: Mapping[str, np.ndarray]) -> Schema:
    """The schema with the classes of the training and validation rows; DataError where there is nothing to tell apart."""
    if schema.task == LANGUAGE:
        return schema
    label, parts = schema.label[0], read.parts
    columns = [
        take(parts[split].table.column(label), np.delete(np.arange(len(parts[split].rows)), dropped.get(split, [])))
        for split in ("train", "valid")
        if split in parts
    ]
    if schema.task == "regression":
        targets = encode_targets(parts["train"].table.select(list(schema.label)), schema)
        if not np.isfinite(targets).reshape(len(targets), -1).all(1).any():
            named = " and ".join(map(repr, schema.label))
            raise DataError(f"{spec.path}: the label {named} holds no number in any training row; give another --label")
        return schema
    if schema.task == "multilabel":
        classes = schema.label if len(schema.label) > 1 else multilabel_values(columns)
        if not classes:
            raise DataError(f"{spec.path}: the label {label!r} is empty in every training row; give another --label")
        return replace(schema, classes=classes)
    classes = class_values(columns, table=schema.modality == "table")
    if len(classes) < 2:
        found = f"only the class {classes[0]!r}" if classes else "no class at all"
        raise DataError(
            f"{spec.path}: the label {label!r} holds {found} in the training rows; there must be at least two"
        )
    if spec.task == "binary" and len(classes) > 2:
        raise DataError(f"--task binary needs two classes, but {label!r} has {len(classes)}; try --task multiclass")
    rows = parts["train"].table.num_rows
    if len(classes) > 20 and len(classes) > 0.9 * rows:
        raise DataError(
            f"{spec.path}: the label {label!r} has {len(classes)} classes in {rows} rows; give another --label, or --task"
        )
    names = read.class_names.get(label) or read.class_names.get("*") or []
    if set(classes) <= set(names):  # the data says in which order its classes are
        classes = tuple(name for name in names if name in set(classes))
    task = "binary" if len(classes) == 2 and spec.task != "multiclass" else "multiclass"
    return replace(schema, classes=classes, task=task)


def _fingerprint(files: tuple[Path, ...], path: Path, schema: Schema, splits: Mapping[str, Split]) -> str:
    """sha256 over the bytes of the files, what their columns mean, and which rows are in which split."""
    meaning = {key: value for key, value in asdict(schema).items() if key not in ("reasons", "ignored")}
    digest = hashlib.sha256(json.dumps(meaning, sort_keys=True).encode())
    digest.update(files_sha256(sorted(files), path if path.is_dir() else path.parent).encode())
    for name in SPLITS:
        if name in splits:
            digest.update(
                f"{name}\0{splits[name].file}\0".encode("utf-8", "surrogateescape") + splits[name].rows.tobytes()
            )
    return digest.hexdigest()
