"""JSON from files that may be damaged or hostile: size, depth and numbers are bounded before anything uses the value."""

from __future__ import annotations

import json
import math
import re
from typing import Any

LARGEST = 256 * 2**20  # bytes of a text; the state of a long run has a few MB
DEEPEST = 64  # levels of nesting; the files of a run have at most 12
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")


class NotPlain(ValueError):
    """A text that is JSON only in part, or none that a sound file holds. The message is the reason, to end a sentence with."""


def plain_json(text: str | bytes, *, largest: int = LARGEST, deepest: int = DEEPEST, finite: bool = True) -> Any:
    """The value of a JSON text: no key twice, at most `deepest` levels and `largest` bytes.

    Args:
        text: the JSON, in UTF-8 where it is bytes.
        largest: bytes or characters that are read at most.
        deepest: levels of nesting that are read at most.
        finite: refuse NaN, Infinity and numbers that are too large; configurations of published models hold some.

    Raises:
        NotPlain: the text is not of that form.
    """
    if len(text) > largest:
        raise NotPlain(f"it has {len(text):,} bytes, and at most {largest:,} are read")
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotPlain(f"it is not UTF-8 at byte {error.start}") from None
    if _deeper_than(decoded, deepest):
        raise NotPlain(f"it is nested more than {deepest} levels deep")
    try:
        constant, number = (_refused, _finite) if finite else (float, float)
        return json.loads(decoded, parse_constant=constant, parse_float=number, object_pairs_hook=_without_repeats)
    except NotPlain:
        raise
    except ValueError as error:  # among them integers of more digits than Python reads
        raise NotPlain(str(error)) from None


def _deeper_than(text: str, limit: int) -> bool:
    """Whether brackets outside strings are nested deeper than `limit`, found without recursion."""
    if text.count("[") + text.count("{") <= limit:
        return False
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub("", text)):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > limit:
            return True
    return False


def _refused(name: str) -> float:
    raise NotPlain(f"{name} is not a number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise NotPlain(f"the number {digits[:20]} is too large")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise NotPlain(f"the key {twice[:80]!r} occurs twice in one object")
    return made
