"""Findings about single texts: missing, wrongly decoded, with HTML, far too long, with personal data."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from regraft.data.dataset import Schema
from regraft.phases.audit.parts import NO_TEXT, Part, as_text, is_missing
from regraft.phases.findings import Finding

TIMES, WORDS = 10, 512  # a text is very long beyond this many times the median and this many words
SAMPLE = 100_000  # rows whose words are counted for the median
SUSPECT = (  # the first two characters of UTF-8 that was read as Latin-1 or Windows-1252
    r"[\x{c2}-\x{f4}][\x{80}-\x{bf}\x{152}\x{153}\x{160}\x{161}\x{178}\x{17d}\x{17e}\x{192}\x{2c6}\x{2dc}"
    r"\x{2013}-\x{203a}\x{20ac}\x{2122}]"
)
HTML = (
    r"(?i)</?(?:p|br|div|span|a|b|i|u|em|strong|ul|ol|li|table|tr|td|th|h[1-6]|img|font|script|style|body|html|head|title|form|"
    r"input|button|hr|center|blockquote|pre|code)(?:\s[^<>]*)?/?>|&(?:nbsp|amp|lt|gt|quot|apos|copy|mdash|ndash|hellip|[lr][sd]quo|"
    r"#\d{2,5}|#x[0-9a-f]{2,5});"
)
EMAIL = r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}"
PHONE = (
    r"(?:^|[^\w.,/-])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,5}\d{2,4}|"
    r"\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?:$|[^\w-])"
    r"|(?i:phone|tel|telephone|mobile|cell|call|fax|whatsapp)\b[^\d\n]{0,15}\+?\d[\d ().-]{5,16}\d"
)
CARD = r"(?:\d[ -]?){12,18}\d"
IBAN = r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b"


@dataclass
class Seen:
    """Row indices of each kind, gathered batch by batch."""

    rows: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, kind: str, start: int, mask: np.ndarray) -> None:
        """Note the rows of a batch that begins at `start` where `mask` is true."""
        hit = np.flatnonzero(mask)
        if len(hit):
            self.rows.setdefault(kind, []).append(hit + start)

    def get(self, kind: str) -> np.ndarray:
        """All rows of a kind, ascending."""
        found = self.rows.get(kind)
        return np.concatenate(found) if found else np.empty(0, np.int64)


def missing_texts(part: Part, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Rows of each input column whose text is missing, blank, or a mark such as `N/A`."""
    seen = Seen()
    for start, table in part.batches(columns):
        for name in columns:
            seen.add(name, start, is_missing(table.column(name), NO_TEXT))
    return {name: seen.get(name) for name in columns if len(seen.get(name))}


def without_missing(part: Part, schema: Schema) -> tuple[Part, list[Finding]]:
    """(the part with rows that miss a text marked as not usable, findings that name them)."""
    columns = [name for name in schema.inputs if name in part.split.column_names]
    usable, findings = part.usable.copy(), []
    for name, rows in missing_texts(part, columns).items():
        usable[rows] = False
        message = (
            f"{len(rows):,} of {len(part):,} texts in {name!r} of {part.name} are missing, blank or a mark "
            "such as N/A; drop them"
        )
        findings.append(part.finding("missing-text", "warning", message, rows, column=name))
    return replace(part, usable=usable), findings


def text_findings(part: Part, column: str) -> tuple[list[Finding], dict[str, Any]]:
    """All findings about the texts of one column, and facts about their length."""
    median, p95, longest_sampled = _lengths(part, column)
    limit = int(max(TIMES * median, WORDS))
    seen = Seen()
    for start, table in part.batches([column]):
        _look(seen, start, pc.fill_null(as_text(table.column(column)), ""), limit)
    lengths = {"median": median, "p95": p95, "max": longest_sampled, "unit": "words"}
    return _findings(part, column, seen, median), lengths


def _look(seen: Seen, start: int, text: pa.ChunkedArray, limit: int) -> None:
    """Note what is odd in one batch of texts."""
    seen.add("encoding", start, _matches(text, "\\x{fffd}"))
    suspect = np.flatnonzero(_matches(text, SUSPECT))
    if len(suspect):
        broken = np.zeros(len(text), dtype=bool)
        broken[suspect] = [repaired(value) is not None for value in text.take(pa.array(suspect)).to_pylist()]
        seen.add("mojibake", start, broken)
    seen.add("html", start, _matches(text, HTML))
    long = np.asarray(pc.utf8_length(text)) > 2 * limit
    if long.any():
        words = np.zeros(len(text), dtype=np.int64)
        words[long] = np.asarray(pc.count_substring_regex(text.filter(pa.array(long)), pattern=r"\S+"))
        seen.add("long", start, words > limit)
    seen.add("e-mail address", start, _matches(text, EMAIL))
    seen.add("phone number", start, _matches(text, PHONE))
    for kind, pattern, check in (("card number", CARD, luhn), ("IBAN", IBAN, iban)):
        hit = np.flatnonzero(_matches(text, pattern))
        sure = np.zeros(len(text), dtype=bool)
        if len(hit):
            values = text.take(pa.array(hit)).to_pylist()
            sure[hit] = [any(check(m.group()) for m in re.finditer(pattern, value)) for value in values]
        seen.add(kind, start, sure)


def _findings(part: Part, column: str, seen: Seen, median: float) -> list[Finding]:
    """The findings of what was seen."""
    findings = []
    said = {
        "encoding": (
            "warning",
            "hold the replacement character, so their bytes were not in the encoding of the file; save the file as UTF-8",
        ),
        "mojibake": (
            "warning",
            "were decoded with the wrong encoding once (such as 'Ã©' for 'é'); a cleaned copy repairs them",
        ),
        "html": ("info", "hold HTML tags or entities; strip them if the model will not see HTML in service"),
        "long": (
            "info",
            f"have over {WORDS} words and over {TIMES} times the median of {median:.0f}; they will be cut, look at them",
        ),
    }
    names = {"encoding": "encoding", "mojibake": "mojibake", "html": "html-remains", "long": "very-long-text"}
    for kind, (severity, text) in said.items():
        rows = seen.get(kind)
        if len(rows):
            message = f"{len(rows):,} texts in {column!r} of {part.name} {text}"
            findings.append(part.finding(names[kind], severity, message, rows, column=column))  # type: ignore[arg-type]
    kinds = ("e-mail address", "phone number", "card number", "IBAN")
    found = {kind: seen.get(kind) for kind in kinds if len(seen.get(kind))}
    if found:
        rows = np.unique(np.concatenate(list(found.values())))
        counts = ", ".join(f"{kind} {len(index):,}" for kind, index in found.items())
        severity = "warning" if {"card number", "IBAN"} & set(found) else "info"
        message = (
            f"{len(rows):,} texts in {column!r} of {part.name} look like they hold personal data ({counts}); "
            "mask it or have a reason"
        )
        findings.append(part.finding("personal-data", severity, message, rows, column=column))
    return findings


def repaired(text: str) -> str | None:
    """The text with UTF-8 that was read as Latin-1 or Windows-1252 turned back; None where that does not work everywhere.

    >>> repaired("cafÃ©")
    'café'
    """
    pattern = re.compile(SUSPECT_RUN)

    def back(match: re.Match[str]) -> str:
        raw = b"".join(_byte(character) for character in match.group())
        return raw.decode("utf-8")

    try:
        out = pattern.sub(back, text)
    except UnicodeDecodeError:
        return None
    return out if out != text else None


def luhn(text: str) -> bool:
    """Whether 13 to 19 digits pass the check of payment cards (ISO/IEC 7812-1, annex B)."""
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [d if k % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for k, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def iban(text: str) -> bool:
    """Whether an international bank account number has remainder 1 modulo 97 (ISO 13616)."""
    bare = text.replace(" ", "")
    if not 15 <= len(bare) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in bare[4:] + bare[:4])) % 97 == 1


def _windows() -> dict[str, int]:
    """Byte of each character that Windows-1252 puts between 0x80 and 0x9f."""
    return {bytes([b]).decode("cp1252"): b for b in range(0x80, 0xA0) if b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)}


WINDOWS = _windows()
_TAIL = "\u0080-\u00bf" + "".join(sorted(WINDOWS))
SUSPECT_RUN = f"[\u00c2-\u00df][{_TAIL}]|[\u00e0-\u00ef][{_TAIL}]{{2}}|[\u00f0-\u00f4][{_TAIL}]{{3}}"


def _byte(character: str) -> bytes:
    return bytes([WINDOWS.get(character, ord(character) & 0xFF)])


def _matches(text: pa.ChunkedArray, pattern: str) -> np.ndarray:
    return np.asarray(pc.match_substring_regex(text, pattern=pattern))


def _lengths(part: Part, column: str) -> tuple[float, float, int]:
    """(median, 95th percentile, maximum) of words a text, over evenly spaced rows where there are many."""
    if not len(part):
        return 0.0, 0.0, 0
    step = max(1, len(part) // SAMPLE)
    text = pc.fill_null(as_text(part.split.take(column, np.arange(0, len(part), step))), "")
    words = np.asarray(pc.count_substring_regex(text, pattern=r"\S+"))
    return float(np.median(words)), float(np.percentile(words, 95)), int(words.max(initial=0))
