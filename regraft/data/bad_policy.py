"""What is done with bad rows: stop at the first one, leave them out and say how many, or keep them for the audit to show."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from regraft.config.data import DataSpec, LeftOut
from regraft.config.recipe import RecipeSpec
from regraft.data.bad import KINDS, READER, Odd, faults
from regraft.data.bad_images import image_faults
from regraft.data.dataset import SPLITS, Dataset, Problem, Schema, Skipped
from regraft.data.sniff import sniff
from regraft.errors import DataError

if TYPE_CHECKING:
    from regraft.data.read import Part

FOUND_BY_AUDIT = ("missing-text", "missing-label", "unreadable", "decompression-bomb")  # it finds these itself
WAYS_OUT = {
    "train": "correct it, list all with `regraft audit {path}`, or leave such rows out with --on-bad-sample skip (in a recipe: "
    "on_bad_sample: skip)",
    "use": "correct it, so that every row counts, or go on without such rows with --on-bad-sample skip",
}
NAMED = 5  # bad rows that are named where all are counted

Purpose = Literal["train", "use", "audit"]  # "use": prediction and evaluation


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """One row that is left out or stops the job."""

    row: int  # in its file
    problem: Problem


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What is known of the rows of a data set before it is cut."""

    problems: tuple[Problem, ...]
    dropped: Mapping[str, np.ndarray]  # split -> (M,) int64 positions in its table that are left out
    skipped: Skipped | None = None  # where bad rows are left out


def settle(
    parts: Mapping[str, Part],
    problems: tuple[Problem, ...],
    schema: Schema,
    spec: DataSpec,
    path: Path,
    *,
    odd: Odd,
    files: str,
    images: bool,
    purpose: Purpose,
) -> Settled:
    """Look for bad rows and do with them what `spec.on_bad_sample` says; for an audit they are only listed.

    `problems` are those of the reader; `files` is the sha256 of the files; `images`: they must be decoded to be trusted.

    Raises:
        DataError: a bad row, where none is allowed; more bad rows than `spec.most_bad`; or other files than those in which
            the rows of `spec.left_out` were found.
    """
    if purpose == "audit":
        kinds = (bad.problem for bad in _in_tables(parts, schema, odd) if bad.problem.kind not in FOUND_BY_AUDIT)
        return Settled(problems=(*problems, *kinds), dropped={})
    if spec.on_bad_sample == "skip" and spec.left_out is not None:
        bad = _as_before(parts, problems, schema, spec.left_out, spec, files)
    else:
        bad = [BadRow(row=p.row, problem=p) for p in problems if p.row is not None and p.kind in READER]
        bad += _in_tables(parts, schema, odd)
        fail = spec.on_bad_sample == "fail"
        if images and schema.modality == "image" and not (bad and fail):
            bad += _in_images(parts, schema, path, first_only=fail)
        bad = _one_each(bad, parts)
        if bad and fail:
            raise DataError(_refusal(bad, spec, path, purpose))
    if spec.on_bad_sample == "fail":
        return Settled(problems=problems, dropped={})
    return _left_out(parts, problems, bad, spec, files)


def _left_out(
    parts: Mapping[str, Part], problems: tuple[Problem, ...], bad: list[BadRow], spec: DataSpec, files: str
) -> Settled:
    """The same rows as what is left out."""
    total = sum(len(part.rows) for part in parts.values())
    total += sum(not _is_read(one, parts) for one in bad)
    if len(bad) > spec.most_bad * total:
        counts = ", ".join(f"{KINDS[kind]}: {count:,}" for kind, count in _counts(bad).items())
        raise DataError(
            f"{spec.path}: {len(bad):,} of {total:,} rows are bad ({counts}), which is more than the "
            f"{100 * spec.most_bad:g} % that may be left out, the first: {bad[0].problem.message}; correct the data, or allow "
            "more with --set data.most_bad=SHARE"
        )
    rows: dict[str, dict[str, np.ndarray]] = {}
    dropped: dict[str, np.ndarray] = {}
    for split, part in parts.items():
        here = [one for one in bad if one.problem.split == split]
        for kind in sorted({one.problem.kind for one in here}):
            found = [one.row for one in here if one.problem.kind == kind]
            rows.setdefault(split, {})[kind] = np.array(sorted(found), np.int64)
        positions = np.flatnonzero(np.isin(part.rows, [one.row for one in here]))
        if len(positions):
            dropped[split] = positions
        if len(positions) == len(part.rows):
            raise DataError(f"{spec.path}: every row of {part.name} is bad, the first: {here[0].problem.message}")
    others = [p for p in problems if p.row is None or p.kind not in READER]
    listed = (*others, *(replace(one.problem, left_out=True) for one in bad))
    first = tuple(one.problem.message for one in bad[:NAMED]) if spec.left_out is None else spec.left_out.first
    return Settled(problems=listed, dropped=dropped, skipped=Skipped(rows=rows, total=total, files=files, first=first))


def _in_tables(parts: Mapping[str, Part], schema: Schema, odd: Odd) -> list[BadRow]:
    """Bad texts, numbers and labels."""
    found: list[BadRow] = []
    for split, part in parts.items():
        known = schema if split != "unlabelled" else replace(schema, label=())
        for fault in faults(part.table, known, odd.get(split, {})):
            found += _rows_of(part, split, fault.positions, fault.kind, fault.says)
    return found


def _in_images(parts: Mapping[str, Part], schema: Schema, path: Path, *, first_only: bool) -> list[BadRow]:
    """Images that cannot be decoded."""
    found: list[BadRow] = []
    for split, part in parts.items():
        for fault in image_faults(part, schema, path, first_only=first_only):
            found += _rows_of(part, split, fault.positions, fault.kind, fault.says)
        if found and first_only:
            break
    return found


def _rows_of(part: Part, split: str, positions: np.ndarray, kind: str, says: Any) -> Iterator[BadRow]:
    for position in positions.tolist():
        row, name = int(part.rows[position]), _file_of(part, position)
        message = f"{name or f'row {row} of {part.name}'} {says(position)}"
        problem = Problem(kind=kind, split=split, row=None if name else row, file=name or part.name, message=message)
        yield BadRow(row=row, problem=problem)


def _file_of(part: Part, position: int) -> str | None:
    """The image file that a row of an image folder is; None for rows of tables."""
    return (
        None
        if part.stored is not None or "file" not in part.table.column_names
        else part.table["file"][position].as_py()
    )


def _is_read(one: BadRow, parts: Mapping[str, Part]) -> bool:
    """Whether a reader made a row of it."""
    return one.problem.kind not in ("field-count", "unreadable") or bool(
        np.isin(one.row, parts[one.problem.split].rows)
    )


def _one_each(bad: Iterable[BadRow], parts: Mapping[str, Part]) -> list[BadRow]:
    """Each row once, under the first reason, in the order of splits and rows."""
    once: dict[tuple[str, int], BadRow] = {}
    for one in bad:
        if one.problem.split in parts:
            once.setdefault((one.problem.split, one.row), one)
    return sorted(once.values(), key=lambda one: (SPLITS.index(one.problem.split), one.row))


def _counts(bad: Iterable[BadRow]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in bad:
        counts[one.problem.kind] = counts.get(one.problem.kind, 0) + 1
    return counts


# ---- stopping


def _refusal(bad: list[BadRow], spec: DataSpec, path: Path, purpose: Purpose) -> str:
    """The sentence that names the first bad row, with its line, and the ways out."""
    first = bad[0]
    line = None if first.problem.row is None else line_of(path, first.problem.file, first.row, spec)
    message, name = first.problem.message, f"row {first.row} of {first.problem.file}"
    if line is not None:
        message = message.replace(name, f"{name} (line {line})", 1)
    more = f" (and {len(bad) - 1:,} more rows are bad)" if len(bad) > 1 else ""
    return f"{message}{more}; {WAYS_OUT[purpose].format(path=spec.path)}"


def line_of(path: Path, name: str, row: int, spec: DataSpec) -> int | None:
    """Number of the line, from 1, in which a row of a text file begins; None where the file is none or cannot be followed."""
    file = (path if path.is_dir() else path.parent) / name
    suffix = file.suffix.lower()
    if suffix not in (".csv", ".tsv", ".jsonl", ".ndjson") or not file.is_file():
        return None
    if suffix in (".jsonl", ".ndjson"):
        with file.open("rb") as stream:
            full = (number for number, line in enumerate(stream, 1) if line.removeprefix(b"\xef\xbb\xbf").strip())
            return next((number for place, number in enumerate(full) if place == row), None)
    dialect = sniff(file, encoding=spec.encoding, delimiter=spec.delimiter, quoting=spec.quoting)
    mode: Literal[0, 3] = csv.QUOTE_NONE if dialect.quoting == "none" else csv.QUOTE_MINIMAL
    try:
        with file.open(encoding=dialect.encoding, errors="replace", newline="") as stream:
            reader = csv.reader(stream, delimiter=dialect.delimiter, quoting=mode)
            place, before = -1, 0
            for record in reader:
                if record and place == row:
                    return before + 1
                place, before = place + bool(record), reader.line_num
    except csv.Error:
        return None
    return None


# ---- the same rows again


def _as_before(
    parts: Mapping[str, Part],
    problems: tuple[Problem, ...],
    schema: Schema,
    given: LeftOut,
    spec: DataSpec,
    files: str,
) -> list[BadRow]:
    """The rows that a recipe names, with the messages of the reader where there are some."""
    if given.files != files:
        raise DataError(
            f"{spec.path} is not the data in which the rows of data.left_out were found; take left_out out of the recipe to "
            "have them looked for again"
        )
    messages = {(p.split, p.row): p for p in problems if p.kind in READER}
    out: list[BadRow] = []
    for split, kinds in given.rows.items():
        if split not in parts:
            raise DataError(f"data.left_out: the data has no {split!r} split; take left_out out of the recipe")
        part = parts[split]
        place = {int(row): at for at, row in enumerate(part.rows)} if part.stored is None else {}
        known = len(part.rows) + sum(p.split == split for p in problems)
        for kind, text in kinds.items():
            for row in from_ranges(text, most=known):
                name = _file_of(part, place[row]) if row in place else None
                said = f"{name or f'row {row} of {part.name}'} is left out ({KINDS.get(kind, kind)})"
                fresh = Problem(kind=kind, split=split, row=None if name else row, file=name or part.name, message=said)
                out.append(BadRow(row=row, problem=messages.get((split, row), fresh)))
    return _one_each(out, parts)


def left_out_of(dataset: Dataset) -> LeftOut | None:
    """The rows that were left out of a data set as a recipe holds them; None where none may be."""
    if dataset.skipped is None:
        return None
    rows = {
        split: {kind: ranges(found) for kind, found in kinds.items()} for split, kinds in dataset.skipped.rows.items()
    }
    return LeftOut(files=dataset.skipped.files, rows=rows, first=dataset.skipped.first)


def with_left_out(spec: RecipeSpec, datasets: Mapping[str, Dataset]) -> RecipeSpec:
    """The recipe with the rows that were left out of its entries of `data:`, so that a resumed run leaves out the same."""
    found = {name: left_out_of(dataset) for name, dataset in datasets.items()}
    data = {
        name: entry if found.get(name) is None else entry.replaced(left_out=found[name])
        for name, entry in spec.data.items()
    }
    return spec if data == dict(spec.data) else spec.replaced(data=data)


def bad_sample_facts(dataset: Dataset) -> dict[str, Any]:
    """What was left out, for audit.json, metrics.json and the report: counts by split and kind, and the first rows."""
    skipped = dataset.skipped
    if skipped is None:
        return {"policy": "fail", "rows": 0}
    counts = {split: {kind: len(found) for kind, found in kinds.items()} for split, kinds in skipped.rows.items()}
    rows = sum(sum(kinds.values()) for kinds in counts.values())
    return {"policy": "skip", "rows": rows, "of": skipped.total, "counts": counts, "first": list(skipped.first)}


def ranges(rows: np.ndarray) -> str:
    """Ascending numbers as text.

    >>> ranges(np.array([3, 17, 90, 91, 92]))
    '3,17,90-92'
    """
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    runs = [run for run in np.split(rows, cuts) if len(run)]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def from_ranges(text: str, *, most: int) -> list[int]:
    """The numbers again. DataError where the text is none that `ranges` writes, or holds more than `most` numbers.

    >>> from_ranges("3,17,90-92", most=5)
    [3, 17, 90, 91, 92]
    """
    runs: list[range] = []
    for piece in text.split(",") if text else []:
        if not re.fullmatch(r"[0-9]{1,18}(-[0-9]{1,18})?", piece):
            raise DataError(f"data.left_out: rows are written as 3,17,90-92, got {text[:40]!r}")
        first, _, last = piece.partition("-")
        runs.append(range(int(first), int(last or first) + 1))
    if (total := sum(run.stop - run.start for run in runs if run)) > most:
        raise DataError(
            f"data.left_out: {text[:40]!r} are {total:,} rows, and the data has {most:,}; take left_out out of the recipe"
        )
    return [row for run in runs for row in run]
