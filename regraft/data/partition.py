"""The splits of a data set: given ones as they are, missing ones cut from the training rows, and the limit applied."""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from regraft.config.data import DataSpec
from regraft.data.cache import cache_folder, file_sha256, key_of, written_whole
from regraft.data.dataset import LANGUAGE, SPLITS, Schema, Split
from regraft.data.labels import encode_targets
from regraft.data.splits import cut, cut_late, fold_numbers, limited, strata_of, units_of_group, units_of_inputs
from regraft.data.stored import scan
from regraft.errors import DataError

if TYPE_CHECKING:
    from regraft.data.read import Part

TIME_FORMATS = ("%Y-%m-%d %H:%M:%S", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%Y-%m", "%Y%m%d")


def divide(
    parts: Mapping[str, Part], schema: Schema, spec: DataSpec, path: Path, *, dropped: Mapping[str, np.ndarray]
) -> tuple[dict[str, Split], list[str]]:
    """(splits in the order of SPLITS, a sentence for each that was cut), without the rows at the `dropped` positions."""
    train = parts["train"]
    wanted = [name for name in ("test", "valid") if name not in parts]  # test first: it is to be like the whole
    _check_folds(spec, schema, given="valid" in parts)
    labels = _strata(train.table, schema)
    left = _kept(train, dropped.get("train"))
    chosen: dict[str, np.ndarray] = {}
    reasons: list[str] = []
    if wanted:
        times = _times(train.table, schema.time) if schema.time else None
        units = None if schema.time else _units(train, schema, path)
        for name in wanted:
            share = spec.test if name == "test" else spec.valid
            if name == "valid" and spec.folds is not None:
                mask = (
                    fold_numbers(labels[left], units if units is None else units[left], spec.folds, spec.seed)
                    == spec.fold
                )
            elif times is not None:
                mask = cut_late(times[left], share=share)
            else:
                mask = cut(labels[left], None if units is None else units[left], share=share, seed=spec.seed)
            if not mask.any() or mask.all():
                raise DataError(
                    f"{spec.path} has too few rows or groups to cut off a {name} split; add rows, or give a {name} file"
                )
            chosen[name], left = left[mask], left[~mask]
            reasons.append(_said(name, int(mask.sum()), len(mask), schema, spec))
    if spec.limit is not None and spec.limit < len(left):
        reasons.append(
            f"{spec.limit} of {len(left)} training rows are used (limit), a sample in which each class keeps its share"
        )
        left = left[limited(labels[left], limit=spec.limit, seed=spec.seed)]
    chosen["train"] = left
    splits: dict[str, Split] = {}
    for name in SPLITS:
        if name in chosen:
            whole = len(chosen[name]) == train.table.num_rows
            rows, positions = train.rows[chosen[name]], None if whole else chosen[name]
            splits[name] = Split(name=name, file=train.name, table=train.table, rows=rows, positions=positions)
        elif name in parts:
            part, gone = parts[name], dropped.get(name)
            kept = None if gone is None else _kept(part, gone)
            rows = part.rows if kept is None else part.rows[kept]
            splits[name] = Split(name=name, file=part.name, table=part.table, rows=rows, positions=kept)
    return splits, reasons


def _check_folds(spec: DataSpec, schema: Schema, *, given: bool) -> None:
    if spec.folds is None:
        return
    if spec.fold >= spec.folds:
        raise DataError(f"{spec.path}: fold must be below folds, {spec.folds}, got {spec.fold}")
    if given or schema.time:
        why = (
            "has a validation split of its own"
            if given
            else f"is split by the time {schema.time!r}, and folds know the future"
        )
        raise DataError(f"{spec.path}: {why}, so it cannot be validated on folds; leave them out")


def _kept(part: Part, dropped: np.ndarray | None) -> np.ndarray:
    """(N,) int64 positions of a part that are not dropped."""
    every = np.arange(part.table.num_rows)
    return every if dropped is None else np.delete(every, dropped)


def _strata(table: pa.Table, schema: Schema) -> np.ndarray:
    targets = encode_targets(table.select(list(schema.label)), schema, num_rows=table.num_rows)
    if schema.task == "regression" and targets.ndim == 2:
        targets = targets[:, 0]
    return strata_of(targets, num_rows=table.num_rows)


def _units(train: Part, schema: Schema, path: Path) -> np.ndarray | None:
    """(N,) int64 keys: rows with equal keys stay on one side. None: no two rows are alike."""
    if schema.group:
        return units_of_group(train.table.column(schema.group))
    if schema.inputs == ("file",) and train.stored is None:
        return _units_of_files(train.table.column("file"), path)
    inputs = list(schema.inputs)
    if train.stored is None:
        return units_of_inputs(train.table.select(inputs).to_batches())
    known = cache_folder("units") / f"{key_of('units', train.stored.name, inputs)}.npy"
    if not known.exists():
        units = units_of_inputs(scan(train.stored, inputs))
        with written_whole(known) as beside, beside.open("wb") as stream:
            np.save(stream, np.empty(0, np.int64) if units is None else units)
    units = np.load(known)
    return units if len(units) else None


def _units_of_files(column: pa.ChunkedArray, path: Path) -> np.ndarray:
    """(N,) int64 keys of image files: equal for equal bytes; only files of one size are compared."""
    files = [path / name for name in column.to_pylist()]
    sizes = np.array([file.stat().st_size for file in files])
    values, counts = np.unique(sizes, return_counts=True)
    shared = set(values[counts > 1].tolist())
    keys = [
        file_sha256(file) if size in shared else str(file) for file, size in zip(files, sizes.tolist(), strict=True)
    ]
    return np.unique(np.array(keys), return_inverse=True)[1].astype(np.int64)


def _times(table: pa.Table, name: str) -> np.ndarray:
    """(N,) float64 that grow with time, NaN where missing; DataError where the column holds no times."""
    column = table.column(name)
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)
    if pa.types.is_temporal(column.type):
        return _seconds(pc.cast(column, pa.timestamp("us")))
    if pa.types.is_string(column.type):
        trimmed = pc.utf8_trim_whitespace(column)
        text = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
        zone = pc.replace_substring_regex(text, r"(Z|[+-]\d\d:?\d\d)$", "") if _ends_in_zone(text) else text
        for parse in (_iso, *(_format(one) for one in TIME_FORMATS)):
            try:
                return _seconds(parse(text if parse is _iso else zone))
            except pa.ArrowInvalid:
                continue
    raise DataError(
        f"--time: the column {name!r} holds no dates, times or numbers that can be put in order; write it as 2024-05-31 13:00"
    )


def _ends_in_zone(text: pa.ChunkedArray) -> bool:
    return bool(pc.any(pc.match_substring_regex(text, r"\d(Z|[+-]\d\d:?\d\d)$")).as_py())


def _iso(text: pa.ChunkedArray) -> pa.ChunkedArray:
    if _ends_in_zone(text):
        return pc.cast(text, pa.timestamp("us", tz="UTC"))
    return pc.cast(text, pa.timestamp("us"))


def _format(pattern: str):  # noqa: ANN202
    return lambda text: pc.strptime(text, format=pattern, unit="us")


def _seconds(stamps: pa.ChunkedArray) -> np.ndarray:
    return pc.cast(pc.cast(stamps, pa.int64()), pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def _said(name: str, taken: int, of: int, schema: Schema, spec: DataSpec) -> str:
    """The sentence that says how a split was cut."""
    if schema.time:
        how = f"the latest by {schema.time!r}"
    elif schema.group:
        how = f"whole groups of {schema.group!r}, seed {spec.seed}"
    else:
        kept = "equal inputs kept together"
        tenths = f"by tenths of {schema.label[0]!r}" if len(schema.label) > 1 else "by tenths of the label"
        tenths = "at random" if schema.task == LANGUAGE else tenths
        how = (
            f"{tenths if schema.task in ('regression', LANGUAGE) else 'stratified by label'}, {kept}, seed {spec.seed}"
        )
    return f"{name} is cut from train: {taken:,} of {of:,} rows ({how}); change with --set data.{name}=SHARE"
