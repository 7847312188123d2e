"""Findings about whole columns: constant ones, identifiers, missing cells, and columns that give the label away."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from regraft.data.dataset import Schema
from regraft.phases.audit.parts import Part, as_text, is_missing
from regraft.phases.findings import Finding

SAMPLE = 50_000  # rows on which a column is tried as a predictor
GAIN = 0.7  # share of the errors of always guessing the largest class that a leaking column must save on held-out rows
R2 = 0.95  # explained variance of a number that a leaking column must reach
PREFIXES = (1, 2, 3, 4)  # leading characters tried as predictors
BINS = 64  # quantiles into which a number is cut
MARKS = ("", "?", "na", "n/a", "nan", "null")


def column_findings(part: Part, schema: Schema, *, seed: int) -> list[Finding]:
    """Constant, id-like and leaking columns of the training rows, and missing cells of tables."""
    findings: list[Finding] = []
    special = {*schema.label, schema.group, schema.time}
    index = np.arange(len(part))
    if len(index) > SAMPLE:
        index = np.sort(np.random.default_rng(seed).choice(index, SAMPLE, replace=False))
    target = _target(part, schema, index)
    for name in part.split.column_names:
        kind = part.split.table.schema.field(name).type
        if name in special or not _plain(kind) or (schema.modality != "table" and name in schema.inputs):
            continue
        is_input = name in schema.inputs
        constant = constant_finding(part, name, is_input)
        if constant is not None:
            findings.append(constant)
            continue
        sample = part.split.take(name, index)
        identifier = _is_identifier(sample)
        if identifier:
            message = (
                f"the column {name!r} of {part.name} has another value in nearly every row, like an identifier; "
                "do not learn from it"
            )
            findings.append(part.finding("id-column", "warning" if is_input else "info", message, column=name))
        if target is not None and (is_input or not identifier or pa.types.is_string(kind)):
            leak = leaking_finding(part, name, sample, target, is_input=is_input, seed=seed)
            findings += [] if leak is None else [leak]
    if schema.modality == "table":
        findings += missing_cells(part, schema)
    return findings


def constant_finding(part: Part, name: str, is_input: bool) -> Finding | None:
    """A column with one value in all rows."""
    first = part.split.take(name, np.arange(min(len(part), 100)))
    if len(part) < 2 or len(pc.unique(first)) > 1 or len(pc.unique(part.split.column(name))) > 1:
        return None
    severity = "warning" if is_input else "info"
    value = str(first[0].as_py())[:40]
    message = f"the column {name!r} of {part.name} is {value!r} in every row, so it tells nothing; leave it out"
    return part.finding("constant-column", severity, message, column=name)


def leaking_finding(
    part: Part, name: str, column: pa.ChunkedArray, target: np.ndarray, *, is_input: bool, seed: int
) -> Finding | None:
    """A column that alone predicts the label far above chance on held-out rows."""
    best = (0.0, "")
    for how, codes in _views(column, number=target.dtype.kind == "f").items():
        score = held_out_gain(codes, target, seed=seed)
        if score > best[0] + 0.01:
            best = (score, how)
    number = target.dtype.kind == "f"
    if best[0] < (R2 if number else GAIN):
        return None
    what = "explains" if number else "saves"
    unit = "of the variance of the label" if number else "of the errors of guessing the largest class"
    role = (
        "it is an input, so make sure it is known before the label is"
        if is_input
        else "it is no input; keep it out of the model"
    )
    message = f"{best[1]} the column {name!r} alone {what} {best[0]:.0%} {unit} on held-out rows of {part.name}; {role}"
    return part.finding("leaking-column", "warning", message, column=name)


def held_out_gain(codes: np.ndarray, target: np.ndarray, *, seed: int) -> float:
    """How well the mean or most frequent target of each value predicts held-out rows: 0 is the overall guess, 1 is perfect.

    Classes: share of the errors of the largest class that are saved. Numbers: explained variance R2. Two folds, averaged.
    """
    fold = np.random.default_rng(seed).permutation(len(codes)) % 2
    return float(np.mean([_one_fold(codes, target, fold == side) for side in (0, 1)]))


def _one_fold(codes: np.ndarray, target: np.ndarray, test: np.ndarray) -> float:
    train = ~test
    groups = int(codes.max(initial=0)) + 1
    if target.dtype.kind == "f":
        mean = target[train].mean()
        count = np.bincount(codes[train], minlength=groups)
        total = np.bincount(codes[train], weights=target[train], minlength=groups)
        guess = np.where(count > 0, total / np.maximum(count, 1), mean)[codes[test]]
        spread = ((target[test] - mean) ** 2).sum()
        return 1 - float(((target[test] - guess) ** 2).sum() / spread) if spread > 0 else 0.0
    classes = int(target.max()) + 1
    overall = int(np.bincount(target[train], minlength=classes).argmax())
    pairs, count = np.unique(codes[train].astype(np.int64) * classes + target[train], return_counts=True)
    guess = np.full(groups, overall, np.int64)
    order = np.argsort(count, kind="stable")
    guess[pairs[order] // classes] = pairs[order] % classes  # the most frequent one is written last
    errors = float((target[test] != overall).mean())
    return 1 - float((target[test] != guess[codes[test]]).mean()) / errors if errors > 0 else 0.0


def missing_cells(part: Part, schema: Schema) -> list[Finding]:
    """Input cells of a table that are empty, one finding a column."""
    findings = []
    for name in schema.inputs:
        if name not in part.split.column_names:
            continue
        rows = np.flatnonzero(is_missing(part.split.column(name), MARKS))
        if len(rows):
            message = (
                f"{len(rows):,} of {len(part):,} cells of the input {name!r} in {part.name} are missing; they "
                "are filled in for the model"
            )
            findings.append(part.finding("missing-value", "info", message, rows, column=name))
    return findings


def _plain(kind: pa.DataType) -> bool:
    """Whether a column holds numbers, texts, truth values or times."""
    return not (
        pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_null(kind)
    )


def _target(part: Part, schema: Schema, index: np.ndarray) -> np.ndarray | None:
    """What a column is tried on: class codes (M,) int64, or numbers (M,) float64; -1 counts as a class of its own."""
    if len(index) < 20 or not len(part.labels) or schema.task == "multilabel":
        return None
    codes = part.clean_codes[index].astype(np.int64)
    if schema.task != "regression":
        return codes + 1
    values = np.array([*(_number(label) for label in part.labels), 0.0])
    values[-1] = values[:-1].mean()  # stands for missing ones, whose code is -1
    return values[codes]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _is_identifier(column: pa.ChunkedArray) -> bool:
    """Nearly all values differ, and they are texts or whole numbers."""
    if pa.types.is_floating(column.type) or pa.types.is_boolean(column.type) or len(column) < 20:
        return False
    return len(pc.unique(column)) >= 0.99 * len(column)


def _views(column: pa.ChunkedArray, *, number: bool) -> Mapping[str, np.ndarray]:
    """Codes (M,) int64 of a column read in several ways, by how a sentence names them."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        values = np.nan_to_num(np.asarray(pc.cast(column, pa.float64()).to_numpy(), dtype=np.float64))
        edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
        distinct, exact = np.unique(values, return_inverse=True)
        views = {"the size of": np.searchsorted(edges, values, side="right")}
        return views | ({"the value of": exact} if len(distinct) <= len(values) / 4 and not number else {})
    text = pc.fill_null(as_text(column), "")
    views = {"the value of": _codes(text)}
    views["the first word of"] = _codes(
        pc.replace_substring_regex(text, pattern=r"(?s)^([\pL\pN]*)[^\pL\pN].*$", replacement=r"\1")
    )
    for size in PREFIXES:
        plural = "character" if size == 1 else f"{size} characters"
        views[f"the first {plural} of"] = _codes(pc.utf8_slice_codeunits(text, 0, size))
    return views


def _codes(text: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.index_in(text, value_set=pc.unique(text))).astype(np.int64)
