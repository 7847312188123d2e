"""The audit of a data set: every check over every given split, gathered into one report."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from regraft.config.secrets import redact
from regraft.data.bad_policy import bad_sample_facts
from regraft.data.csv_cells import harmless
from regraft.data.dataset import Dataset, Problem
from regraft.errors import DataError
from regraft.phases.audit.columns import column_findings
from regraft.phases.audit.cuts import cut_findings
from regraft.phases.audit.descriptors import image_features, own_suspects
from regraft.phases.audit.image_scan import thumbnails
from regraft.phases.audit.images import Looked, image_findings, look_at
from regraft.phases.audit.labels import class_counts, label_findings, missing_label_finding, with_merged
from regraft.phases.audit.leakage import leakage_findings
from regraft.phases.audit.parts import Part, parts_of, places
from regraft.phases.audit.suspects import given_suspects, suspect_findings_from
from regraft.phases.audit.text import text_findings, without_missing
from regraft.phases.audit.text_duplicates import duplicate_findings
from regraft.phases.findings import AuditReport, Finding

TOP = 50  # classes listed in the facts
ORDER = {"error": 0, "warning": 1, "info": 2}
MILD = {"stray-file": "info", "empty-class": "info", "encoding": "warning"}  # the others are errors
FIELDS = ("kind", "severity", "split", "file", "row", "column", "related_split", "related_row", "suggested", "message")


def audit(
    dataset: Dataset,
    *,
    probabilities: Mapping[str, np.ndarray] | None = None,
    features: Mapping[str, np.ndarray] | None = None,
    suspects: bool = True,
    seed: int = 0,
) -> AuditReport:
    """What is wrong or odd with a data set, errors first, and facts about it; a function of the data and the seed.

    `probabilities`: split -> (rows, classes) of a model that never saw these rows, classes as in the schema; label errors are
    suspected by them. Otherwise by a model of the audit's own, on `features` (split -> (rows, D)) where they are given.
    `suspects=False` leaves label errors to a later `with_suspects`, when a better model is there.
    """
    parts = with_merged(parts_of(dataset))
    facts: dict[str, Any] = {"samples": {}}
    findings = problem_findings(dataset.problems)
    looked: list[Looked] = []
    if dataset.schema.modality == "image":
        looked = look_at(parts, dataset)
        parts = tuple(one.part for one in looked)
        found, compared = image_findings(looked, seed=seed)
        findings += found
    else:
        parts, found, lengths = _texts(parts, dataset)
        findings += found
        facts |= {"lengths": lengths} if lengths else {}
        found, compared = duplicate_findings(parts, dataset.schema, seed=seed)
        findings += found
    findings += cut_findings(dataset, parts, found)
    facts["samples"] |= {key: value for key, value in compared.items() if key == "near_duplicates"}
    facts |= {key: value for key, value in compared.items() if key != "near_duplicates"}
    findings += _labels(parts, dataset)
    for part in parts:
        findings += column_findings(part, dataset.schema, seed=seed) if part.name == "train" else []
    findings += leakage_findings(parts, dataset)
    if suspects and dataset.schema.task in ("binary", "multiclass"):
        found, judged = _suspects(parts, dataset, looked, probabilities, features, seed=seed)
        findings += found
        facts["samples"] |= judged
    findings = _sorted(findings)
    return AuditReport(findings=findings, facts=facts | _facts(parts, dataset, findings))


def with_suspects(
    report: AuditReport,
    dataset: Dataset,
    probabilities: Mapping[str, np.ndarray],
    rows: Mapping[str, np.ndarray] | None = None,
) -> AuditReport:
    """The report with label errors suspected by the held-out `probabilities` of a model, in place of any it had.

    `probabilities`: split -> (rows, classes), classes as in the schema, each row judged by a model that never saw it.
    `rows`: split -> the places in it that were judged, where not all were.
    """
    _check_rows(dataset, probabilities, rows or {})
    if dataset.schema.task not in ("binary", "multiclass"):
        return report
    kept = [f for f in report.findings if f.kind not in ("suspected-label-error", "labels-hard-to-judge")]
    findings = _sorted([*kept, *suspect_findings_from(dataset, probabilities, rows)])
    samples = {k: v for k, v in report.facts.get("samples", {}).items() if k != "suspected_label_errors"}
    return AuditReport(findings=findings, facts={**report.facts, "samples": samples, **_counts(findings)})


def problem_findings(problems: Sequence[Problem]) -> list[Finding]:
    """One finding for each kind of problem that the reader met, naming all rows or files."""
    groups: dict[tuple[str, str, str | None], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.kind, problem.split, problem.file if problem.row is not None else None), []).append(
            problem
        )
    out = []
    for (kind, split, file), found in groups.items():
        rows = tuple(problem.file if problem.row is None else problem.row for problem in found)
        more = f"; {len(found):,} such {'rows' if file else 'files'} in {split}" if len(found) > 1 else ""
        more += "; left out" if found[0].left_out else ""
        severity = "warning" if found[0].left_out else MILD.get(kind, "error")
        message = found[0].message + more
        out.append(Finding(kind=kind, severity=severity, split=split, file=file, rows=rows, message=message))  # type: ignore[arg-type]
    return out


def write_findings_csv(report: AuditReport, path: Path) -> None:
    """One line for each row concerned (one line for a finding that concerns none), safe to open in a spreadsheet."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        for finding in report.findings:
            for place in range(max(len(finding.rows), 1)):
                writer.writerow([harmless(cell) for cell in _cells(finding, place)])


def _cells(finding: Finding, place: int) -> list[object]:
    """The cells of the line about one row of a finding."""
    row = finding.rows[place] if finding.rows else ""
    related = finding.related[place] if finding.related else {"split": "", "row": ""}
    suggested = finding.suggested[place] if finding.suggested else ""
    first = [finding.kind, finding.severity, finding.split or "", finding.file or "", row, finding.column or ""]
    return [*first, related["split"], related["row"], suggested, redact(finding.message)]


def _texts(parts: tuple[Part, ...], dataset: Dataset) -> tuple[tuple[Part, ...], list[Finding], dict[str, Any]]:
    """(parts whose rows with missing text are not usable, findings about texts, lengths by split and column)."""
    if dataset.schema.modality != "text":
        return parts, [], {}
    out, findings, lengths = [], [], {}
    for part in parts:
        part, missing = without_missing(part, dataset.schema)
        findings += missing
        columns = [name for name in dataset.schema.inputs if name in part.split.column_names]
        for name in columns:
            found, length = text_findings(part, name)
            findings += found
            lengths.setdefault(part.name, {})[name] = length
        out.append(part)
    return tuple(out), findings, lengths


def _labels(parts: tuple[Part, ...], dataset: Dataset) -> list[Finding]:
    """Findings about labels."""
    column = ", ".join(dataset.schema.label)
    present = [part for part in parts if set(dataset.schema.label) & set(part.split.column_names)]
    findings = [f for f in (missing_label_finding(part, column) for part in present) if f is not None]
    if dataset.schema.task in ("binary", "multiclass"):
        findings += label_findings(present, column)
    return findings


def _suspects(
    parts: tuple[Part, ...],
    dataset: Dataset,
    looked: Sequence[Looked],
    probabilities: Mapping[str, np.ndarray] | None,
    features: Mapping[str, np.ndarray] | None,
    *,
    seed: int,
) -> tuple[list[Finding], dict[str, Any]]:
    """Suspected label errors, by the caller's probabilities or by the audit's own model of the training rows."""
    for given in (probabilities or {}, features or {}):
        _check_rows(dataset, given)
    if probabilities:
        return given_suspects(dataset, parts, probabilities), {}
    train = next((part for part in parts if part.name == "train"), None)
    if train is None:
        return [], {}
    values = None
    pieces = [name for name in features or {} if dataset.splits[name].file == train.split.file]
    if features and pieces:  # rows that were cut off the file may have none, and are then not judged
        values = np.zeros((len(train), np.shape(features[pieces[0]])[1]))
        known = np.zeros(len(train), dtype=bool)
        for name in pieces:
            index = places(train, dataset.splits[name])
            values[index], known[index] = features[name], True
        train = replace(train, usable=train.usable & known)
    elif looked:
        looks = next(one.looks for one in looked if one.part.name == "train")
        grey, colour = thumbnails(looks)
        values = image_features(colour, grey)
    findings, judged = own_suspects(train, dataset.schema, values, seed=seed)
    return findings, {"suspected_label_errors": judged}


def _check_rows(
    dataset: Dataset, given: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray] | None = None
) -> None:
    """DataError where values are given for another number of rows than a split has, or than `rows` names in it."""
    for name, values in given.items():
        wanted = (rows or {}).get(name, dataset.splits.get(name))
        if name not in dataset.splits or wanted is None or len(values) != len(wanted):
            have = len(wanted) if name in dataset.splits and wanted is not None else "no such split"
            raise DataError(
                f"audit: the values given for split {name!r} have {len(values)} rows, the data has {have}; give one row each"
            )


def _sorted(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Errors first, then by kind, split and column."""
    return tuple(sorted(findings, key=lambda f: (ORDER[f.severity], f.kind, f.split or "", f.column or "")))


def _facts(parts: tuple[Part, ...], dataset: Dataset, findings: Sequence[Finding]) -> dict[str, Any]:
    """Rows, classes, what was detected, and how many rows each kind of finding concerns."""
    classified = dataset.schema.task in ("binary", "multiclass")
    classes = {part.name: class_counts(part) for part in parts} if classified else {}
    return {
        "rows": {part.name: len(part) for part in parts},
        "splits": {name: len(split) for name, split in dataset.splits.items()},
        "classes": {name: dict(list(count.items())[:TOP]) for name, count in classes.items()},
        "num_classes": {name: len(count) for name, count in classes.items()},
        "task": dataset.schema.task,
        "modality": dataset.schema.modality,
        "reasons": list(dataset.schema.reasons),
        "bad_samples": bad_sample_facts(dataset),
        **_counts(findings),
    }


def _counts(findings: Sequence[Finding]) -> dict[str, dict[str, int]]:
    """How many rows each kind of finding concerns, and again those of duplicates and conflicts."""
    counts: dict[str, int] = {}
    for finding in findings:
        counts[finding.kind] = counts.get(finding.kind, 0) + max(len(finding.rows), 1)
    copies = {kind: count for kind, count in counts.items() if "duplicate" in kind or "conflict" in kind}
    return {"duplicates": copies, "counts": counts}
