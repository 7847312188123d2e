"""Findings about images: unreadable or odd files, and pictures that stand there twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from regraft.data.dataset import Dataset
from regraft.data.images_on_disk import cell_bytes, image_folders
from regraft.phases.audit.duplicates import (
    Keyed,
    conflicts_across,
    conflicts_within,
    exact_across,
    exact_within,
    leak_finding,
)
from regraft.phases.audit.image_near import SAMPLE, closest, near_pairs
from regraft.phases.audit.image_scan import SUFFIXES, Look, scan, thumbnails
from regraft.phases.audit.parts import Part
from regraft.phases.findings import Finding, Severity

TINY = 8  # pixels on the shorter side below which an image shows nothing
FLAT = 3.0  # standard deviation of the grey levels (0 to 255) below which an image is blank
PLAIN_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/")


@dataclass(frozen=True, kw_only=True)
class Looked:
    """A part with a look at each of its images."""

    part: Part
    looks: tuple[Look, ...]
    keyed: Keyed


@dataclass(frozen=True)
class Oddity:
    """A property of single images that is worth a finding."""

    kind: str
    severity: Severity
    text: str
    test: Callable[[Look], bool]


ODD = (
    Oddity("cmyk-image", "warning", "are CMYK (made for print); convert them to RGB", lambda v: v.mode == "CMYK"),
    Oddity("deep-image", "warning", "have more than 8 bits a channel; convert them to 8", lambda v: v.deep),
    Oddity(
        "palette-image", "info", "hold a palette, or several frames; convert the first to RGB", lambda v: v.is_palette
    ),
    Oddity(
        "transparent-image", "info", "have transparent parts, shown on white; convert them", lambda v: v.transparent
    ),
    Oddity("rotated-image", "warning", "are stored turned, with an EXIF mark; save them upright", lambda v: v.turned),
    Oddity("tiny-image", "warning", f"have a side under {TINY} pixels; drop them", lambda v: v.side < TINY),
    Oddity(
        "blank-image", "warning", "have one colour all over; drop them", lambda v: v.side >= TINY and v.spread < FLAT
    ),
)


def look_at(parts: Sequence[Part], dataset: Dataset) -> list[Looked]:
    """The parts with a look at each image; images that cannot be read, blank and tiny ones are not usable."""
    out = []
    for part in parts:
        folders = image_folders(dataset, part.split)
        cells = part.split.column(dataset.schema.inputs[0])

        def read(index: int, cells: Any = cells, folders: Any = folders) -> bytes:
            return cell_bytes(cells[index].as_py(), folders)

        looks = tuple(scan(len(part), read))
        usable = np.array([not v.bad and v.side >= TINY and v.spread >= FLAT for v in looks], dtype=bool)
        keys = np.array([v.key for v in looks], dtype=np.uint64)
        part = replace(part, usable=usable)
        out.append(Looked(part=part, looks=looks, keyed=Keyed(part=part, raw=keys, folded=keys)))
    return out


def image_findings(looked: Sequence[Looked], *, seed: int) -> tuple[list[Finding], dict[str, Any]]:
    """All findings about images and their duplicates, and facts about sizes and what was compared."""
    findings = []
    for one in looked:
        findings += [*unreadable_findings(one), *odd_findings(one), *name_findings(one)]
        findings += [f for f in (exact_within(one.keyed), conflicts_within(one.keyed)) if f is not None]
    near, facts = _near(looked, seed=seed)
    for number, one in enumerate(looked):
        findings += _near_within(one, number, near)
    for earlier, later in combinations(range(len(looked)), 2):
        findings += _across(looked, earlier, later, near)
    return findings, facts | {"image_sizes": {one.part.name: _sizes(one.looks) for one in looked}}


def unreadable_findings(looked: Looked) -> list[Finding]:
    """Files that cannot be decoded, and those too large to be decoded safely."""
    part, out = looked.part, []
    bombs = np.array([v.bad == "a decompression bomb" for v in looked.looks], dtype=bool)
    broken = np.array([bool(v.bad) for v in looked.looks], dtype=bool) & ~bombs
    if broken.any():
        counts = Counter(v.bad for v in looked.looks if v.bad and v.bad != "a decompression bomb")
        listed = ", ".join(f"{count} {why}" for why, count in sorted(counts.items()))
        message = (
            f"{int(broken.sum()):,} of {len(part):,} images in {part.name} cannot be read ({listed}); save "
            "them again or drop them"
        )
        out.append(part.finding("unreadable", "error", message, np.flatnonzero(broken)))
    if bombs.any():
        message = (
            f"{int(bombs.sum()):,} images in {part.name} claim more pixels than can be decoded safely; drop "
            "them or scale them down"
        )
        out.append(part.finding("decompression-bomb", "error", message, np.flatnonzero(bombs)))
    return out


def odd_findings(looked: Looked) -> list[Finding]:
    """Images that can be read but are unlike the others or hardly show anything."""
    part, looks = looked.part, looked.looks
    fine = [not v.bad for v in looks]
    out = []
    for odd in ODD:
        rows = np.flatnonzero([ok and odd.test(v) for ok, v in zip(fine, looks, strict=True)])
        if len(rows):
            out.append(
                part.finding(
                    odd.kind, odd.severity, f"{len(rows):,} of {len(part):,} images in {part.name} {odd.text}", rows
                )
            )
    grey = np.array(
        [ok and v.mode in ("L", "LA", "1", "I", "F", "I;16") for ok, v in zip(fine, looks, strict=True)], dtype=bool
    )
    if grey.any() and grey.mean() < 0.5:
        message = f"{int(grey.sum()):,} of {len(part):,} images in {part.name} are grey among colour images; convert them to RGB"
        out.append(part.finding("grey-among-colour", "info", message, np.flatnonzero(grey)))
    return out


def name_findings(looked: Looked) -> list[Finding]:
    """Files whose name does not fit their content, or may give trouble elsewhere."""
    part = looked.part
    if part.names is None:
        return []
    names, out = [PurePosixPath(str(name)) for name in part.names], []
    wrong = [
        not v.bad and v.format in SUFFIXES and n.suffix.lower() not in SUFFIXES[v.format]
        for n, v in zip(names, looked.looks, strict=True)
    ]
    if any(wrong):
        rows = np.flatnonzero(wrong)
        message = f"{len(rows):,} images in {part.name} are of another format than their names end in; rename them"
        out.append(part.finding("wrong-extension", "warning", message, rows))
    rows = np.flatnonzero([not set(name.name) <= PLAIN_NAME for name in names])
    if len(rows):
        message = (
            f"{len(rows):,} images in {part.name} have names with spaces, brackets or letters beyond ASCII; "
            "some programs cannot open them"
        )
        out.append(part.finding("odd-file-name", "info", message, rows))
    return out


Place = tuple[int, int]  # number of the part, index in it


def _near(looked: Sequence[Looked], *, seed: int) -> tuple[dict[Place, list[Place]], dict[str, Any]]:
    """Near duplicates of each image by its place, the most similar first, and how many images were compared."""
    places = [(n, i) for n, one in enumerate(looked) for i in np.flatnonzero(one.part.usable).tolist()]
    facts = {"near_duplicates": {"rows": len(places), "compared": min(len(places), SAMPLE), "seed": seed}}
    if len(places) > SAMPLE:
        kept = np.sort(np.random.default_rng(seed).choice(len(places), SAMPLE, replace=False))
        places = [places[k] for k in kept.tolist()]
    seen: dict[int, int] = {}
    alone = []  # one image for each content, so that copies are not compared again
    for n, i in places:
        key = looked[n].looks[i].key
        if key not in seen:
            seen[key] = len(alone)
            alone.append((n, i))
    copies: list[list[Place]] = [[] for _ in alone]
    for n, i in places:
        copies[seen[looked[n].looks[i].key]].append((n, i))
    grey, _ = thumbnails([looked[n].looks[i] for n, i in alone])
    out: dict[Place, list[Place]] = {}
    for one, partners in closest(near_pairs(grey)).items():
        for place in copies[one]:
            out[place] = [other for _, partner in partners for other in copies[partner]]
    return out, facts


def _near_within(looked: Looked, number: int, near: Mapping[Place, list[Place]]) -> list[Finding]:
    """Near duplicates inside one split, and those of them with different labels."""
    part = looked.part
    found = {i: [o for m, o in partners if m == number] for (n, i), partners in near.items() if n == number}
    rows = np.array(sorted(i for i, partners in found.items() if partners), dtype=np.int64)
    if not len(rows):
        return []
    related = [(part, found[i][0]) for i in rows.tolist()]
    message = (
        f"{len(rows):,} of {len(part):,} images in {part.name} are near copies of another one (recompressed, resized, cropped, "
        f"mirrored or the like); keep one of each"
    )
    out = [part.finding("near-duplicate", "warning", message, rows, related=related)]
    codes = part.clean_codes
    other = [
        (i, next((o for o in found[i] if codes[o] != codes[i] and min(codes[o], codes[i]) >= 0), None))
        for i in rows.tolist()
    ]
    odd = [(i, o) for i, o in other if o is not None]
    if odd:
        message = (
            f"{len(odd):,} images in {part.name} are near copies of one with another label; decide on one "
            "label or drop them"
        )
        index = np.array([i for i, _ in odd], dtype=np.int64)
        out.append(part.finding("near-label-conflict", "warning", message, index, related=[(part, o) for _, o in odd]))
    return out


def _across(looked: Sequence[Looked], first: int, second: int, near: Mapping[Place, list[Place]]) -> list[Finding]:
    """The findings about images of a later split that also stand in an earlier one."""
    earlier, later = looked[first], looked[second]
    out = []
    rows, partner = exact_across(earlier.keyed, later.keyed)
    if len(rows):
        kind = "exact-duplicate-across-splits"
        out.append(leak_finding(kind, earlier.part, later.part, rows, partner.tolist(), how="also stand byte for byte"))
    exact = set(rows.tolist())
    found = {
        i: next((o for m, o in p if m == first), None) for (n, i), p in near.items() if n == second and i not in exact
    }
    pairs = sorted((i, o) for i, o in found.items() if o is not None)
    if pairs:
        index = np.array([i for i, _ in pairs], dtype=np.int64)
        how = "stand recompressed, resized, cropped, mirrored or the like"
        kind = "near-duplicate-across-splits"
        out.append(leak_finding(kind, earlier.part, later.part, index, [o for _, o in pairs], how=how))
    conflict = conflicts_across(earlier.keyed, later.keyed)
    return out if conflict is None else [*out, conflict]


def _sizes(looks: Sequence[Look]) -> dict[str, Any]:
    """Smallest, median and largest width and height of the images that can be read."""
    sizes = np.array([(v.width, v.height) for v in looks if not v.bad], dtype=np.int64).reshape(-1, 2)
    if not len(sizes):
        return {}
    return {
        "min": sizes.min(axis=0).tolist(),
        "median": np.median(sizes, axis=0).astype(int).tolist(),
        "max": sizes.max(axis=0).tolist(),
        "unit": "pixels, width and height",
    }
