"""Advice on augmentation that may change what an example is, as far as names of classes tell."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from regraft.phases.advice.situation import Finding, Situation

DIGITS = frozenset("0123456789")
SIDED = re.compile(r"(?:^|[^a-z])(left|right|b|d|p|q)(?:$|[^a-z])", re.IGNORECASE)
UPRIGHT = re.compile(
    r"(?:^|[^a-z0-9])(up|down|top|bottom|upward|downward|6|9|six|nine|m|w|n|u)(?:$|[^a-z0-9])", re.IGNORECASE
)
TURNED = 90.0  # degrees from which on a turned picture may show something else
SAFETY = "Shorten and Khoshgoftaar, 2019, doi:10.1186/s40537-019-0197-0, on the safety of augmentations"


def mirrored_sides(situation: Situation) -> Iterator[Finding]:
    """DATA1: images are mirrored although classes seem to differ by their sides."""
    where = "train.flip" if situation.spec.train.flip else _with(situation, "flip")
    telling = sided(situation.classes)
    if situation.modality == "image" and where is not None and telling:
        yield Finding(
            code="DATA1",
            severity="warning",
            where=where,
            reason=f"images are mirrored, but classes such as {telling[0]!r} seem to tell left from right: a mirrored "
            "example may have another label",
            source=SAFETY,
            fix=f"set `{where}: {'false' if where == 'train.flip' else 0}`",
        )


def turned_over(situation: Situation) -> Iterator[Finding]:
    """DATA2: images are turned over although classes seem to tell up from down, as 6 and 9 do."""
    down = _with(situation, "flip_vertical")
    turned = _with(situation, "rotate", least=TURNED)
    where, telling = down or turned, upright(situation.classes)
    if situation.modality == "image" and where is not None and len(telling) > 1:
        yield Finding(
            code="DATA2",
            severity="warning",
            where=where,
            reason=f"images are turned over, but classes such as {telling[0]!r} and {telling[1]!r} seem to tell up from down: "
            "what comes out may have another label",
            source=SAFETY,
            fix=f"set `{where}: {0 if where == down else 15}`, or ask a trained model with `regraft check-augment`",
        )


def sided(classes: Sequence[str]) -> list[str]:
    """Names of classes that a mirror may change: those with left or right in them, mirrored letters, the ten digits."""
    if set(classes) >= DIGITS:
        return sorted(DIGITS)
    return [name for name in classes if SIDED.search(name)]


def upright(classes: Sequence[str]) -> list[str]:
    """Names of classes that turning over may change: up and down, top and bottom, 6 and 9, M and W."""
    return [name for name in classes if UPRIGHT.search(name)]


def _with(situation: Situation, field: str, *, least: float = 0.0) -> str | None:
    """Dotted name of the first technique whose field is above 0, and at least so much."""
    for technique in situation.spec.techniques:
        value: Any = getattr(technique, field, None)
        if (
            type(technique).__name__ == "ImageGeometry"
            and isinstance(value, float | int)
            and value > 0
            and value >= least
        ):
            return f"techniques.ImageGeometry.{field}"
    return None


RULES = (mirrored_sides, turned_over)
