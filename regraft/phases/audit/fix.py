"""A cleaned copy of a data set: what the audit is sure about is put right or dropped, the rest is left to a person."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from regraft.data.dataset import Dataset
from regraft.data.safe_image import loaded
from regraft.data.sniff import NO_DELIMITER, sniff
from regraft.errors import DataError, RunError
from regraft.phases.audit.duplicates import Keyed
from regraft.phases.audit.image_scan import as_rgb
from regraft.phases.audit.images import look_at
from regraft.phases.audit.labels import with_merged
from regraft.phases.audit.parts import Part, as_text, index_of, parts_of
from regraft.phases.audit.text import repaired, without_missing
from regraft.phases.audit.text_duplicates import keyed_parts
from regraft.phases.findings import AuditReport

DROPPED = (
    "unreadable",
    "decompression-bomb",
    "missing-label",
    "missing-text",
    "label-conflict",
    "field-count",
    "tiny-image",
    "blank-image",
    "nul-byte",
    "huge-text",
    "empty-row",
    "not-a-number",
    "not-finite",
    "bad-target",
)
CONVERTED = (
    "cmyk-image",
    "deep-image",
    "palette-image",
    "transparent-image",
    "rotated-image",
    "grey-among-colour",
    "wrong-extension",
)
FIXED = "fixed.json"
CLASSES = "classes.json"  # names of integer labels, which belong to the data


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """What was changed: rows dropped, and rows changed, each by reason and split."""

    dropped: Mapping[str, Mapping[str, int]]
    changed: Mapping[str, Mapping[str, int]]
    rows: Mapping[str, int]  # rows left in each split


def fix(dataset: Dataset, report: AuditReport, out: Path, *, relabel: bool = False) -> Fixed:
    """Write a cleaned copy of the data to the new folder `out` and say what was changed (also in `out/fixed.json`).

    Dropped: unreadable rows and images, rows without label or text, copies, training rows that also stand in valid or test,
    rows whose copies contradict each other, but for those with the majority label. Changed: mojibake, spellings of labels,
    odd image modes and turned images; suspected label errors only with `relabel`. The original is never written to.
    RunError where `out` exists.
    """
    if out.exists():
        raise RunError(
            f"{out} exists; a cleaned copy is only written to a folder that is not there yet, give another name"
        )
    if out.resolve().is_relative_to(dataset.path.resolve()):
        raise RunError(f"{out} lies inside the data {dataset.path}; give a folder outside of it")
    parts = with_merged(parts_of(dataset))
    keyed = _keyed(parts, dataset)
    parts = tuple(one.part for one in keyed)
    reasons = drops(keyed, report)
    labels = {part.name: new_labels(part, report, relabel=relabel) for part in parts}
    waiting = out.with_name(f".{out.name}.part")
    if waiting.exists():
        shutil.rmtree(waiting)
    waiting.mkdir(parents=True)
    changed: dict[str, dict[str, int]] = {}
    for part in parts:
        keep = np.ones(len(part), dtype=bool)
        for index in reasons[part.name].values():
            keep[index] = False
        write = _write_images if part.names is not None else _write_table
        done = write(part, dataset, report, keep, labels[part.name], waiting)
        for reason, count in done.items():
            changed.setdefault(reason, {})[part.name] = count
    dropped: dict[str, dict[str, int]] = {}
    for name, found in reasons.items():
        for reason, index in found.items():
            dropped.setdefault(reason, {})[name] = len(index)
    rows = {part.name: len(part) - len(np.unique(np.concatenate([[], *reasons[part.name].values()]))) for part in parts}
    fixed = Fixed(dropped=dropped, changed=changed, rows=rows)
    content = {"format": "regraft.fixed/1", "dropped": dropped, "changed": changed, "rows": rows}
    names = dataset.path / CLASSES
    if names.is_file():
        shutil.copyfile(names, waiting / CLASSES)
    (waiting / FIXED).write_text(json.dumps(content, indent=2), encoding="utf-8")
    waiting.rename(out)
    return fixed


def drops(keyed: Sequence[Keyed], report: AuditReport) -> dict[str, dict[str, np.ndarray]]:
    """Split -> reason -> indices of the rows to drop; each row under the first reason that holds."""
    parts = [one.part for one in keyed]
    out: dict[str, dict[str, np.ndarray]] = {part.name: {} for part in parts}
    gone = {part.name: np.zeros(len(part), dtype=bool) for part in parts}

    def drop(part: Part, reason: str, index: np.ndarray) -> None:
        fresh = index[~gone[part.name][index]]
        gone[part.name][fresh] = True
        if len(fresh):
            out[part.name][reason] = fresh

    for finding in report.findings:
        for part in parts:
            if finding.split == part.name and finding.kind in DROPPED:
                index = index_of(part, finding.rows)
                if finding.kind == "label-conflict":
                    index = outvoted(next(one for one in keyed if one.part is part), index)
                drop(part, finding.kind, index)
    for earlier, later in combinations(keyed, 2):
        if earlier.part.name in ("train", "valid") and later.part.name in ("valid", "test"):
            held = later.folded[later.part.usable]
            index = np.flatnonzero(earlier.part.usable & np.isin(earlier.folded, held))
            drop(earlier.part, "also in " + later.part.name, index)
    for one in keyed:
        if one.part.name in ("train", "unlabelled"):
            left = np.flatnonzero(one.part.usable & ~gone[one.part.name])
            keys = np.stack([one.raw[left], one.part.clean_codes[left].astype(np.int64).view(np.uint64)], axis=1)
            first = np.unique(keys, axis=0, return_index=True)[1] if len(left) else left
            drop(one.part, "exact-duplicate", np.setdiff1d(left, left[first]))
    return out


def outvoted(keyed: Keyed, index: np.ndarray) -> np.ndarray:
    """Of rows that contradict each other, those without the majority label; all rows of an input where no label has more."""
    codes = keyed.part.clean_codes
    votes: dict[int, Counter[int]] = {}
    keys = keyed.folded[index].tolist()
    for key, code in zip(keys, codes[index].tolist(), strict=True):
        votes.setdefault(key, Counter())[code] += 1
    winner: dict[int, int | None] = {}
    for key, count in votes.items():
        ranked = count.most_common(2)
        winner[key] = None if len(ranked) > 1 and ranked[0][1] == ranked[1][1] else ranked[0][0]
    lost = [winner[key] != code for key, code in zip(keys, codes[index].tolist(), strict=True)]
    return index[np.array(lost, dtype=bool)]


def new_labels(part: Part, report: AuditReport, *, relabel: bool) -> dict[int, str]:
    """Index -> label, for rows whose label is spelt in another way, or suspected when `relabel`."""
    out: dict[int, str] = {}
    kinds = ("label-spelling", *(("suspected-label-error",) if relabel else ()))
    for kind in kinds:
        for finding in report.findings:
            if finding.kind == kind and finding.split == part.name:
                out |= dict(zip(index_of(part, finding.rows).tolist(), finding.suggested, strict=True))
    return out


def _keyed(parts: tuple[Part, ...], dataset: Dataset) -> list[Keyed]:
    """The parts with the keys of their rows; rows with missing text and images that show nothing are not usable."""
    if dataset.schema.modality == "image":
        return [one.keyed for one in look_at(parts, dataset)]
    if dataset.schema.modality == "text":
        parts = tuple(without_missing(part, dataset.schema)[0] for part in parts)
    return keyed_parts(parts, dataset.schema)


def _write_table(
    part: Part, dataset: Dataset, report: AuditReport, keep: np.ndarray, labels: Mapping[int, str], out: Path
) -> dict[str, int]:
    """Write one file of rows; what was changed, by reason."""
    table = part.split.select(list(part.split.column_names))
    changed: dict[str, int] = {}
    for finding in report.findings:
        if finding.kind == "mojibake" and finding.split == part.name and finding.column:
            index = index_of(part, finding.rows)
            mended = {i: repaired(table.column(finding.column)[i].as_py()) for i in index.tolist() if keep[i]}
            table = _replaced(table, finding.column, {i: text for i, text in mended.items() if text is not None})
            changed["mojibake"] = len(mended)
    relabelled = {i: label for i, label in labels.items() if keep[i]}
    if relabelled and len(dataset.schema.label) == 1:
        table = _replaced(table, dataset.schema.label[0], relabelled)
        changed["label"] = len(relabelled)
    _save(table.filter(pa.array(keep)), out / _target(part), delimiter=_delimiter(part, dataset))
    return changed


def _replaced(table: pa.Table, column: str, values: Mapping[int, str]) -> pa.Table:
    """The table with some cells of one column replaced."""
    if not values:
        return table
    index = np.array(sorted(values), dtype=np.int64)
    mask = np.zeros(table.num_rows, dtype=bool)
    mask[index] = True
    text = as_text(table.column(column)).combine_chunks()
    fresh = pc.replace_with_mask(text, pa.array(mask), pa.array([values[i] for i in index.tolist()], text.type))
    return table.set_column(table.column_names.index(column), column, fresh)


def _target(part: Part) -> str:
    """Name of the file to write: that of the original where its format can be written, else the split as Parquet."""
    suffix = Path(part.split.file).suffix.lower()
    return Path(part.split.file).name if suffix in (".csv", ".tsv", ".jsonl", ".parquet") else f"{part.name}.parquet"


def _delimiter(part: Part, dataset: Dataset) -> str:
    """What ends the fields of the original file; a comma (in .tsv a tab) where it is no delimited file."""
    suffix = Path(part.split.file).suffix.lower()
    source = dataset.path / part.split.file if dataset.path.is_dir() else dataset.path
    found = sniff(source).delimiter if suffix in (".csv", ".tsv") and source.is_file() else NO_DELIMITER
    return found if found != NO_DELIMITER else "\t" if suffix == ".tsv" else ","


def _save(table: pa.Table, path: Path, *, delimiter: str) -> None:
    """Write a table in the format of the name, in UTF-8."""
    import pyarrow.csv as arrow_csv
    import pyarrow.parquet as parquet

    suffix = path.suffix.lower()
    if suffix == ".parquet":
        parquet.write_table(table, path)
    elif suffix == ".jsonl":
        with path.open("w", encoding="utf-8") as file:
            for batch in table.to_batches(max_chunksize=10_000):
                file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in batch.to_pylist())
    else:
        nested = [
            field.name for field in table.schema if pa.types.is_nested(field.type) or pa.types.is_binary(field.type)
        ]
        if nested:
            raise DataError(
                f"{path.name}: the columns {', '.join(nested)} cannot be written as text; give the data as Parquet"
            )
        arrow_csv.write_csv(table, path, arrow_csv.WriteOptions(delimiter=delimiter))


def _write_images(
    part: Part, dataset: Dataset, report: AuditReport, keep: np.ndarray, labels: Mapping[int, str], out: Path
) -> dict[str, int]:
    """Copy the images of one split, odd ones as upright RGB PNG; what was changed, by reason."""
    odd = {kind: set() for kind in CONVERTED}
    for finding in report.findings:
        if finding.kind in CONVERTED and finding.split == part.name:
            odd[finding.kind] |= set(index_of(part, finding.rows).tolist())
    convert = set().union(*odd.values())
    taken: set[Path] = set()
    names = [Path(str(name)) for name in part.names or ()]
    plain = {names[i] for i in range(len(names)) if i not in convert}
    for index in np.flatnonzero(keep).tolist():
        source = dataset.path / names[index]
        target = names[index] if index not in labels else _moved(names[index], part, labels[index])
        if index in convert:
            target = target.with_suffix(".png")
            if target in taken or target in plain:
                target = target.with_name(f"{target.stem}-{index}.png")
        taken.add(target)
        (out / target).parent.mkdir(parents=True, exist_ok=True)
        if index in convert:
            as_rgb(loaded(source.read_bytes(), name=str(names[index]))).save(out / target)
        else:
            shutil.copyfile(source, out / target)
    done = {kind: sum(bool(keep[i]) for i in found) for kind, found in odd.items()}
    moved = sum(bool(keep[i]) for i in labels)
    return {kind: count for kind, count in (done | {"label": moved}).items() if count}


def _moved(name: Path, part: Part, label: str) -> Path:
    """The name of an image in the folder of another class."""
    root = Path(part.split.file)
    inside = name.relative_to(root) if name.is_relative_to(root) else name
    base = root if name.is_relative_to(root) else Path()
    return base / label / Path(*inside.parts[1:])
