"""Findings about labels: missing ones, spellings of one label, rare classes, and classes that only one split has."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from regraft.phases.audit.edits import is_typo
from regraft.phases.audit.parts import Part
from regraft.phases.findings import Finding

RARE = 10  # examples below which a class is called rare
SLIP = 0.05  # a label with at most this share of the rows of one that differs by one character is taken for a slip
SHORTEST = 5  # characters below which two labels that differ by one are taken for two labels
NAMED = 8  # names listed in a message


def folded_label(label: str) -> str:
    """A label without regard to case, width, outer spaces, and what joins its words (space, underscore, hyphen, dot)."""
    text = unicodedata.normalize("NFKC", label).strip(" \t\r\n\u200b\ufeff")
    joined = re.sub(r"(?<=\w)[\s_\-]+(?=\w)|_+", " ", text)
    return joined.casefold().strip() if len(joined) > 1 else text


def merge_spellings(labels: Sequence[str], counts: np.ndarray) -> np.ndarray:
    """(L,) int32: for each label the one it is a spelling of (itself where it is none): the most frequent of equal ones."""
    merged = np.arange(len(labels), dtype=np.int32)
    by_form: dict[str, list[int]] = {}
    for code, label in enumerate(labels):
        by_form.setdefault(folded_label(label), []).append(code)
    heads = {form: max(codes, key=lambda c: (counts[c], -c)) for form, codes in by_form.items()}
    for form, codes in by_form.items():
        merged[codes] = heads[form]
    totals = {form: int(counts[codes].sum()) for form, codes in by_form.items()}
    forms = sorted(by_form, key=lambda form: (-totals[form], form))
    for form in forms if len(forms) <= 2000 else ():
        close = [o for o in forms if totals[form] <= SLIP * totals[o] and len(form) >= SHORTEST and is_typo(form, o)]
        if close:
            merged[by_form[form]] = merged[heads[close[0]]]
    return merged


def with_merged(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts with the spellings of their labels merged."""
    if not parts or not parts[0].labels:
        return tuple(parts)
    counts = sum(np.bincount(part.codes[part.codes >= 0], minlength=len(part.labels)) for part in parts)
    merged = merge_spellings(parts[0].labels, np.asarray(counts))
    return tuple(replace(part, merged=merged) for part in parts)


def label_findings(parts: Sequence[Part], column: str) -> list[Finding]:
    """Spelling variants, class balance and classes that only one split has; for one label a row."""
    findings = [
        f for part in parts for f in (spelling_finding(part, column), *balance_findings(part, column)) if f is not None
    ]
    for earlier, later in combinations(parts, 2):
        if earlier.name == "train" and later.name in ("valid", "test"):
            findings += coverage_findings(earlier, later, column)
    return findings


def missing_label_finding(part: Part, column: str) -> Finding | None:
    """Rows of a labelled split without a label."""
    rows = np.flatnonzero(part.codes < 0)
    if part.name == "unlabelled" or not len(rows):
        return None
    message = f"{len(rows):,} of {len(part):,} rows in {part.name} have no label; label them or drop them"
    return part.finding("missing-label", "error", message, rows, column=column)


def spelling_finding(part: Part, column: str) -> Finding | None:
    """Rows whose label is another spelling of a more frequent one."""
    rows = np.flatnonzero((part.codes >= 0) & (part.clean_codes != part.codes))
    if not len(rows):
        return None
    meant = [part.labels[code] for code in part.clean_codes[rows].tolist()]
    pairs = sorted({(part.labels[c], m) for c, m in zip(part.codes[rows].tolist(), meant, strict=True)})
    named = ", ".join(f"{a!r} for {b!r}" for a, b in pairs[:NAMED]) + (", ..." if len(pairs) > NAMED else "")
    message = f"{len(rows):,} rows in {part.name} spell a label in another way ({named}); write each label in one way"
    return part.finding("label-spelling", "warning", message, rows, column=column, suggested=meant)


def class_counts(part: Part) -> dict[str, int]:
    """Rows of each class that occurs, largest first, after spellings are merged."""
    codes = part.clean_codes
    counts = np.bincount(codes[codes >= 0], minlength=len(part.labels))
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda c: (-counts[c], c))
    return {part.labels[c]: int(counts[c]) for c in order}


def balance_findings(part: Part, column: str) -> list[Finding]:
    """Classes with a single example, rare classes, and the ratio of the largest class to the smallest."""
    counts = class_counts(part)
    if part.name != "train" or not counts:
        return []
    findings = []
    single = [name for name, count in counts.items() if count == 1]
    if single:
        codes = [part.labels.index(name) for name in single]
        rows = np.flatnonzero(np.isin(part.clean_codes, codes))
        message = f"{len(single)} classes have a single example in train ({_listed(single)}); add examples or drop them"
        findings.append(part.finding("class-with-one-example", "warning", message, rows, column=column))
    rare = [f"{name!r} {count}" for name, count in counts.items() if 1 < count < RARE]
    if rare:
        listed = ", ".join(rare[:NAMED]) + (", ..." if len(rare) > NAMED else "")
        message = (
            f"{len(rare)} classes have fewer than {RARE} examples in train ({listed}); add examples or weigh the loss"
        )
        findings.append(part.finding("rare-class", "warning", message, column=column))
    largest, smallest = next(iter(counts.items())), list(counts.items())[-1]
    ratio = largest[1] / smallest[1]
    if ratio >= 10 and len(counts) > 1:
        message = (
            f"the largest class {largest[0]!r} ({largest[1]:,} rows) is {ratio:.0f} times the smallest {smallest[0]!r} "
            f"({smallest[1]:,}); judge by macro F1, not by accuracy"
        )
        findings.append(part.finding("class-imbalance", "warning", message, column=column))
    return findings


def coverage_findings(train: Part, later: Part, column: str) -> list[Finding]:
    """Labels of a later split that train lacks, and the other way round."""
    known, seen = train.clean_codes, later.clean_codes
    if not (seen >= 0).any():
        return []
    findings = []
    unseen = np.setdiff1d(seen[seen >= 0], known)
    if len(unseen):
        names = [train.labels[c] for c in unseen.tolist()]
        rows = np.flatnonzero(np.isin(seen, unseen))
        message = (
            f"{len(rows):,} rows in {later.name} have a label that train never shows ({_listed(names)}), "
            f"which no model can predict; add training rows or drop them"
        )
        findings.append(later.finding("unseen-label", "error", message, rows, column=column))
    absent = np.setdiff1d(known[known >= 0], seen)
    if len(absent):
        names = [train.labels[c] for c in absent.tolist()]
        message = f"{len(names)} classes of train have no row in {later.name} ({_listed(names)}), so nothing is known about them"
        findings.append(train.finding("class-only-in-train", "info", message, column=column))
    return findings


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:NAMED]) + (", ..." if len(names) > NAMED else "")
