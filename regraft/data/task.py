"""The task from the label column: binary, multi-class, multi-label or regression, with the sentence that says why."""

# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are made when it is imported)
from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from regraft.config.data import DataSpec
from regraft.data.dataset import Modality, Task
from regraft.data.profile import Profile
from regraft.errors import DataError

FEW = 20  # distinct integers up to which they are read as classes


def detect_task(
    table: pa.Table,
    profiles: Mapping[str, Profile],
    label: tuple[str, ...],
    spec: DataSpec,
    *,
    rows: int,
    named: set[str],
    modality: Modality,
    reasons: list[str],
) -> Task:
    """The task, as given or detected; DataError where the given one cannot be done with the label."""
    if not label:
        return "multiclass" if spec.task == "auto" else spec.task
    name, *more = label
    if more:
        return _of_several(table, label, spec, reasons)
    one = profiles[name]
    if spec.task != "auto":
        _check_given(one, spec)
        return spec.task
    task, why = _detected(table, one, named=name in named, modality=modality, rows=rows)
    reasons.append(f"the task is {task}, because {why}; override with --task")
    return task


def _detected(table: pa.Table, one: Profile, *, named: bool, modality: Modality, rows: int) -> tuple[Task, str]:
    """(task, why) of one label column."""
    if one.kind == "list" or (one.kind == "text" and one.separated):
        return "multilabel", f"{one.name!r} holds several labels in one row"
    if one.kind == "float" and not one.whole:
        return "regression", f"{one.name!r} holds numbers that are not whole"
    distinct = len(pc.unique(table.column(one.name).drop_null())) if one.distinct <= 2000 else one.distinct
    if one.kind in ("int", "float") and not named:
        numbered = one.low in (0, 1) and one.high - one.low + 1 == distinct
        if distinct > FEW and not (numbered and rows >= 5 * distinct and distinct <= 1000):
            return "regression", f"{one.name!r} holds {distinct} different whole numbers"
        if distinct > 2 and distinct > one.count / 2:
            return "regression", f"nearly every row has a number of its own in {one.name!r}"
        if modality == "table" and distinct > 4 and one.low not in (0, 1):
            said = f"{one.name!r} holds {distinct} whole numbers; they may also be a score"
            return "multiclass", f"{said}, which is ambiguous (for a score give --task regression)"
    return ("binary" if distinct == 2 else "multiclass"), f"{one.name!r} has {distinct} different values"


def _check_given(one: Profile, spec: DataSpec) -> None:
    """Refuse a task that the label column does not allow."""
    if spec.task == "regression" and one.kind not in ("int", "float", "bool"):
        raise DataError(
            f"--task regression needs numbers as labels, but {one.name!r} holds text; give another --label or --task"
        )
    if spec.task in ("binary", "multiclass") and one.kind == "float" and not one.whole:
        raise DataError(
            f"--task {spec.task} needs classes, but {one.name!r} holds numbers that are not whole; try --task regression"
        )
    if spec.task in ("binary", "multiclass") and one.kind == "list":
        raise DataError(
            f"--task {spec.task} needs one label for a row, but {one.name!r} holds lists; try --task multilabel"
        )
    if spec.task == "binary" and one.distinct > 2:
        raise DataError(
            f"--task binary needs two classes, but {one.name!r} has {one.distinct} different values; try --task multiclass"
        )


def _of_several(table: pa.Table, label: tuple[str, ...], spec: DataSpec, reasons: list[str]) -> Task:
    """Multi-label of columns of 0 and 1, or a regression of several numbers; other columns and tasks are refused."""
    if spec.task not in ("auto", "multilabel", "regression"):
        raise DataError(
            f"--task {spec.task} takes one label column, but {len(label)} are given; leave out {label[1]!r}"
        )
    others = [name for name in label if not _is_indicator(table.column(name))]
    if spec.task != "regression" and not others:
        return "multilabel"
    words = [name for name in label if not _is_number(table.column(name))]
    if spec.task == "regression":
        if words:
            raise DataError(f"--task regression needs numbers as labels, but {words[0]!r} holds text; leave it out")
        return "regression"
    if spec.task == "multilabel" or words or len(others) < len(label):
        raise DataError(
            f"--label: with several label columns each must hold 0 and 1, but {(words or others)[0]!r} holds other values; "
            "for a regression of several numbers give --task regression"
        )
    reasons.append(
        f"the task is regression of {len(label)} numbers, because all label columns hold numbers other than 0 and 1"
    )
    return "regression"


def _is_indicator(column: pa.ChunkedArray) -> bool:
    column = column.cast(pa.int64()) if pa.types.is_boolean(column.type) else column
    return not pa.types.is_string(column.type) and set(pc.unique(column.drop_null()).to_pylist()) <= {0, 1}


def _is_number(column: pa.ChunkedArray) -> bool:
    return pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
