"""Duplicates among texts and table rows: exact ones over all rows, near ones over all rows or a stated sample."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow.compute as pc

from regraft.data.dataset import Schema
from regraft.phases.audit.duplicates import (
    Keyed,
    conflicts_across,
    conflicts_within,
    exact_across,
    exact_within,
    folded_across,
    folded_within,
    leak_finding,
)
from regraft.phases.audit.edits import is_near
from regraft.phases.audit.keys import SEPARATOR, grouped, normalise, row_keys
from regraft.phases.audit.minhash import agreement, candidates, shingles, signatures
from regraft.phases.audit.parts import Part, as_text
from regraft.phases.findings import Finding

SAMPLE = 50_000  # rows that the search for near duplicates looks at, at most; splits smaller than half of it wholly
ESTIMATE = 0.5  # pairs whose signatures agree less are not looked at again; the edits allowed leave at least 0.6
MOST_PAIRS = 300_000  # pairs whose texts are compared, those of the highest agreement first


@dataclass(frozen=True, kw_only=True)
class Near:
    """Rows of one part that are near duplicates, and the (part, row) each is nearest to."""

    rows: list[int]
    partners: list[tuple[int, int]]  # number of the part, index in it


def keyed_parts(parts: Sequence[Part], schema: Schema) -> list[Keyed]:
    """The parts with the keys of their rows: the input columns, of tables and regression also the label."""
    out = []
    for part in parts:
        raw, folded = row_keys(part, [name for name in schema.inputs if name in part.split.column_names])
        folded = raw if schema.modality == "table" else folded
        out.append(Keyed(part=part, raw=raw, folded=folded, labelled=schema.task != "regression"))
    return out


def duplicate_findings(parts: Sequence[Part], schema: Schema, *, seed: int) -> tuple[list[Finding], dict[str, Any]]:
    """All findings about duplicates and conflicts of texts or table rows, and facts about what was compared."""
    keyed = keyed_parts(parts, schema)
    near: dict[tuple[int, int], Near] = {}
    facts: dict[str, Any] = {}
    if schema.modality == "text":
        near, facts = near_text(parts, keyed, schema.inputs, seed=seed)
    findings = []
    for number, one in enumerate(keyed):
        findings += [f for f in (exact_within(one), conflicts_within(one)) if f is not None]
        rows, partner = folded_within(one)
        findings += _near_within(one.part, rows, partner, near.get((number, number)), facts)
    for earlier, later in combinations(range(len(keyed)), 2):
        findings += _across(keyed[earlier], keyed[later], near.get((earlier, later)), facts)
    return findings, facts


def near_text(
    parts: Sequence[Part], keyed: Sequence[Keyed], columns: Sequence[str], *, seed: int
) -> tuple[dict[tuple[int, int], Near], dict[str, Any]]:
    """Near duplicates by (earlier part, later part), found with MinHash and judged by their edits; how many were compared."""
    numbers = np.concatenate([np.full(len(part), n, np.int32) for n, part in enumerate(parts)])
    index = np.concatenate([np.arange(len(part)) for part in parts])
    usable = np.concatenate([part.usable for part in parts])
    chosen = np.flatnonzero(usable)
    facts: dict[str, Any] = {
        "near_duplicates": {"rows": len(usable), "compared": int(min(len(chosen), SAMPLE)), "seed": seed}
    }
    if len(chosen) > SAMPLE:
        chosen = _sampled(numbers, chosen, seed=seed)
    folded = np.concatenate([one.folded for one in keyed])[chosen]
    order, starts = grouped(folded)
    heads = chosen[order[starts]]  # one row for each distinct normalised text
    texts = _texts(parts, columns, numbers[heads], index[heads])
    pairs = _verified(texts, numbers[heads], seed=seed)
    bounds = np.append(starts, len(order))
    members = {int(g): chosen[order[bounds[g] : bounds[g + 1]]] for g in np.unique(pairs[:, :2].astype(np.int64))}
    return _by_parts(pairs, members, numbers, index), facts


def _sampled(numbers: np.ndarray, chosen: np.ndarray, *, seed: int) -> np.ndarray:
    """SAMPLE of the rows `chosen`, ascending: each part up to an equal share, small parts whole."""
    rng = np.random.default_rng(seed)
    groups = sorted((chosen[numbers[chosen] == n] for n in np.unique(numbers[chosen])), key=len)
    taken: list[np.ndarray] = []
    for done, rows in enumerate(groups):
        share = (SAMPLE - sum(map(len, taken))) // (len(groups) - done)
        taken.append(rows if len(rows) <= share else rng.choice(rows, share, replace=False))
    return np.sort(np.concatenate(taken))


def _texts(parts: Sequence[Part], columns: Sequence[str], numbers: np.ndarray, index: np.ndarray) -> list[str]:
    """Normalised texts of some rows, in the order given."""
    out = [""] * len(index)
    for number, part in enumerate(parts):
        places = np.flatnonzero(numbers == number)
        if not len(places):
            continue
        wanted = np.argsort(index[places], kind="stable")
        places = places[wanted]
        texts = [
            normalise(pc.fill_null(as_text(part.split.take(name, index[places])), "")).to_pylist() for name in columns
        ]
        for place, cells in zip(places, zip(*texts, strict=True), strict=True):
            out[place] = SEPARATOR.join(cells)
    return out


def _verified(texts: list[str], parts: np.ndarray, *, seed: int) -> np.ndarray:
    """(P, 3) float64: two places in `texts` and their estimated similarity, for pairs that are small edits of each other.

    Every column must be one. `parts` (N,) is the part of each text: once both of a pair have a partner in the part of
    the other, which is at least as similar, the pair is not looked at.
    """
    if len(texts) < 2:
        return np.empty((0, 3))
    signature = np.concatenate(
        [signatures(*shingles(texts[start : start + 5_000]), seed=seed) for start in range(0, len(texts), 5_000)]
    )
    pairs = candidates(signature)
    score = agreement(signature, pairs)
    kept = score >= ESTIMATE
    pairs, score = pairs[kept], score[kept]
    best = np.argsort(-score, kind="stable")[:MOST_PAIRS]
    settled: set[tuple[int, int]] = set()  # a text, and a part in which it has a partner
    found: list[tuple[int, int, float]] = []
    for (one, two), similarity in zip(pairs[best].tolist(), score[best].tolist(), strict=True):
        ends = {(one, int(parts[two])), (two, int(parts[one]))}
        if not ends <= settled and _near_columns(texts[one], texts[two], similarity):
            settled |= ends
            found.append((one, two, similarity))
    return np.array(found, dtype=np.float64).reshape(-1, 3)


def _near_columns(one: str, two: str, similarity: float) -> bool:
    """Whether each column of two rows is near: of a pair of sentences, one that changes makes another pair."""
    cells = zip(one.split(SEPARATOR), two.split(SEPARATOR), strict=True)
    return all(is_near(left, right, similarity) for left, right in cells)


def _by_parts(
    pairs: np.ndarray, members: Mapping[int, np.ndarray], numbers: np.ndarray, index: np.ndarray
) -> dict[tuple[int, int], Near]:
    """Pairs of texts as rows by (earlier part, later part), each with its most similar partner."""
    best: dict[tuple[int, int], dict[int, tuple[float, int]]] = {}
    for one, two, score in pairs.tolist():
        for here, there in ((int(one), int(two)), (int(two), int(one))):
            first_of_part: dict[int, int] = {}
            for place in members[there].tolist():
                first_of_part.setdefault(int(numbers[place]), place)
            for place in members[here].tolist():
                for number, other in first_of_part.items():
                    if number <= numbers[place]:
                        known = best.setdefault((number, int(numbers[place])), {})
                        known[place] = max(known.get(place, (-1.0, 0)), (score, -other))
    return {
        key: Near(
            rows=[int(index[place]) for place in sorted(found)],
            partners=[(key[0], int(index[-found[place][1]])) for place in sorted(found)],
        )
        for key, found in best.items()
    }


def _stated(facts: Mapping[str, Any]) -> str:
    """The clause that says that near duplicates were searched in a sample only."""
    scope = facts.get("near_duplicates", {"rows": 0, "compared": 0})
    return (
        f"; searched in a sample of {scope['compared']:,} of {scope['rows']:,} rows" if scope["rows"] > SAMPLE else ""
    )


def _near_within(
    part: Part, rows: np.ndarray, partner: np.ndarray, near: Near | None, facts: Mapping[str, Any]
) -> list[Finding]:
    """One finding about the near duplicates inside a split."""
    found = dict(zip(rows.tolist(), partner.tolist(), strict=True))
    edited = 0
    if near is not None:
        for row, (_, other) in zip(near.rows, near.partners, strict=True):
            edited += row not in found
            found.setdefault(row, other)
    if not found:
        return []
    message = (
        f"{len(found):,} of {len(part):,} rows in {part.name} are near copies of another row ({len(rows):,} differ only in case, "
        f"spaces or punctuation, {edited:,} in a few words{_stated(facts)}); keep them on one side of every split"
    )
    index = np.array(sorted(found), dtype=np.int64)
    return [
        part.finding(
            "near-duplicate", "warning", message, index, related=[(part, found[row]) for row in index.tolist()]
        )
    ]


def _across(earlier: Keyed, later: Keyed, near: Near | None, facts: Mapping[str, Any]) -> list[Finding]:
    """The findings about rows of a later split that also stand in an earlier one."""
    findings = []
    rows, partner = exact_across(earlier, later)
    exact = set(rows.tolist())
    if len(rows):
        kind = "exact-duplicate-across-splits"
        findings.append(
            leak_finding(kind, earlier.part, later.part, rows, partner.tolist(), how="also stand word for word")
        )
    found = {r: p for r, p in zip(*(v.tolist() for v in folded_across(earlier, later)), strict=True) if r not in exact}
    if near is not None:
        for row, (_, other) in zip(near.rows, near.partners, strict=True):
            if row not in exact:
                found.setdefault(row, other)
    if found:
        index = np.array(sorted(found), dtype=np.int64)
        how = f"stand with small edits{_stated(facts)}"
        near_partner = [found[row] for row in index.tolist()]
        kind = "near-duplicate-across-splits"
        findings.append(leak_finding(kind, earlier.part, later.part, index, near_partner, how=how))
    conflict = conflicts_across(earlier, later)
    return findings if conflict is None else [*findings, conflict]
