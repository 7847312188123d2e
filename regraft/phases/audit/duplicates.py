"""Findings about rows with equal keys: copies inside a split, copies across splits, and copies with another label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regraft.phases.audit.keys import first_match, group_numbers, grouped, mixed
from regraft.phases.audit.parts import Part
from regraft.phases.findings import Finding, Severity

LEAK_LIMIT = 0.05  # share of the test rows that may also stand in train before the audit calls it an error


@dataclass(frozen=True, kw_only=True)
class Keyed:
    """A part with the keys of its rows."""

    part: Part
    raw: np.ndarray  # (N,) uint64: equal for rows that are equal as they are
    folded: np.ndarray  # (N,) uint64: equal for rows that are equal after folding case, white space and punctuation
    labelled: bool = True  # False: labels are numbers (regression), so different ones are no contradiction


def pairs_within(keys: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, partner of each): all allowed rows whose key occurs more than once; the partner is the first other one."""
    kept = np.flatnonzero(allowed)
    order, starts = grouped(keys[kept])
    sizes = np.diff(np.append(starts, len(kept)))
    several = np.flatnonzero(sizes > 1)
    if not len(several):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    inside = np.repeat(sizes > 1, sizes)
    rows = kept[order[inside]]
    heads = np.repeat(kept[order[starts[several]]], sizes[several])
    seconds = np.repeat(kept[order[starts[several] + 1]], sizes[several])
    partner = np.where(rows == heads, seconds, heads)
    place = np.argsort(rows)
    return rows[place], partner[place]


def exact_within(keyed: Keyed) -> Finding | None:
    """Rows of one split that are equal, label included."""
    part = keyed.part
    keys = mixed(keyed.raw, part.clean_codes)
    rows, partner = pairs_within(keys, part.usable)
    if not len(rows):
        return None
    copies = len(rows) - len(np.unique(keys[rows]))
    message = (
        f"{copies:,} of {len(part):,} rows in {part.name} are exact copies of another row with the same label "
        f"({len(rows):,} rows concerned); keep one of each"
    )
    return part.finding("exact-duplicate", "warning", message, rows, related=[(part, int(p)) for p in partner])


def folded_within(keyed: Keyed) -> tuple[np.ndarray, np.ndarray]:
    """(rows, partners) that differ only in case, white space or punctuation and have the same label."""
    part = keyed.part
    keys = mixed(keyed.folded, part.clean_codes)
    rows, _ = pairs_within(keys, part.usable)
    if not len(rows):
        return rows, rows
    numbers, sizes = group_numbers(keys[rows])
    first = np.full(len(sizes), len(part), np.int64)
    np.minimum.at(first, numbers, rows)
    other = keyed.raw[rows] != keyed.raw[first[numbers]]
    second = np.full(len(sizes), len(part), np.int64)
    np.minimum.at(second, numbers[other], rows[other])
    differs = second[numbers] < len(part)  # the group holds more than one way of writing
    partner = np.where(other, first[numbers], second[numbers])
    return rows[differs], partner[differs]


def conflicts_within(keyed: Keyed) -> Finding | None:
    """Rows of one split that are equal after folding but have different labels."""
    part = keyed.part
    codes = part.clean_codes
    rows, _ = pairs_within(keyed.folded, part.usable & (codes >= 0))
    if not len(rows):
        return None
    numbers, sizes = group_numbers(keyed.folded[rows])
    first = np.full(len(sizes), len(part), np.int64)
    np.minimum.at(first, numbers, rows)
    other = codes[rows] != codes[first[numbers]]
    second = np.full(len(sizes), len(part), np.int64)
    np.minimum.at(second, numbers[other], rows[other])
    differs = second[numbers] < len(part)
    if not differs.any():
        return None
    partner = np.where(other, first[numbers], second[numbers])[differs]
    rows = rows[differs]
    groups = len(np.unique(numbers[differs]))
    severity: Severity = "warning" if keyed.labelled else "info"
    message = (
        f"{len(rows):,} rows in {part.name} ({groups:,} inputs) stand there more than once with different labels; "
        f"decide on one label or drop them"
    )
    return part.finding("label-conflict", severity, message, rows, related=[(part, int(p)) for p in partner])


def exact_across(earlier: Keyed, later: Keyed) -> tuple[np.ndarray, np.ndarray]:
    """(rows of the later split, row of the earlier one) that are equal as they are, whatever their labels."""
    return _across(earlier.raw, later.raw, earlier.part, later.part)


def folded_across(earlier: Keyed, later: Keyed) -> tuple[np.ndarray, np.ndarray]:
    """(rows of the later split, row of the earlier one) that are equal after folding."""
    return _across(earlier.folded, later.folded, earlier.part, later.part)


def leak_finding(
    kind: str, earlier: Part, later: Part, rows: np.ndarray, partner: Sequence[int], *, how: str
) -> Finding:
    """The finding that rows of a later split also stand in an earlier one."""
    share = len(rows) / max(len(later), 1)
    severe = kind == "exact-duplicate-across-splits" and later.name == "test" and share > LEAK_LIMIT
    message = (
        f"{len(rows):,} of {len(later):,} rows in {later.name} ({share:.1%}) {how} in {earlier.name}, "
        f"so scores on {later.name} are too good; drop them from {earlier.name}"
    )
    severity: Severity = "error" if severe else "warning"
    return later.finding(kind, severity, message, rows, related=[(earlier, int(p)) for p in partner])


def conflicts_across(earlier: Keyed, later: Keyed) -> Finding | None:
    """Rows of the later split that stand in the earlier one only under other labels."""
    if not earlier.labelled:
        return None
    old, new = earlier.part.clean_codes, later.part.clean_codes
    before, after = earlier.part.usable & (old >= 0), later.part.usable & (new >= 0)
    index = np.flatnonzero(before)
    anywhere = first_match(later.folded, earlier.folded[index])
    same = first_match(mixed(later.folded, new), mixed(earlier.folded[index], old[index]))
    rows = np.flatnonzero(after & (anywhere >= 0) & (same < 0))
    if not len(rows):
        return None
    message = (
        f"{len(rows):,} rows in {later.part.name} stand in {earlier.part.name} under another label; "
        f"decide on one label and drop the copy from {earlier.part.name}"
    )
    related = [(earlier.part, int(index[anywhere[row]])) for row in rows]
    return later.part.finding("label-conflict-across-splits", "warning", message, rows, related=related)


def _across(old: np.ndarray, new: np.ndarray, earlier: Part, later: Part) -> tuple[np.ndarray, np.ndarray]:
    index = np.flatnonzero(earlier.usable)
    match = first_match(new, old[index])
    rows = np.flatnonzero(later.usable & (match >= 0))
    return rows, index[match[rows]] if len(rows) else rows
