"""How a delimited text file is written: encoding, delimiter and quoting, from its first bytes, each with its reason."""

from __future__ import annotations

import codecs
import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from regraft.errors import DataError

SAMPLE_BYTES = 1 << 18
BOMS = (  # the longer ones first: a UTF-32 mark begins with the UTF-16 one
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
DELIMITERS = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a bar"}
NO_DELIMITER = "\x1f"  # the unit separator: stands for "one column", as no text holds it

Quoting = Literal["minimal", "none"]


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How to read a delimited file. `byte_encoding` is for encodings in which delimiters and quotes are their ASCII bytes."""

    encoding: str
    delimiter: str
    quoting: Quoting
    header: tuple[str, ...]
    reasons: tuple[str, ...]


def sniff(path: Path, *, encoding: str = "auto", delimiter: str = "auto", quoting: str = "auto") -> Dialect:
    """The dialect of a delimited file; what is not "auto" is taken as given. DataError where there are no rows."""
    with path.open("rb") as stream:
        sample = stream.read(SAMPLE_BYTES)
    if not sample.strip():
        raise DataError(f"{path} is empty; it must hold a header line and at least one row")
    whole = len(sample) < SAMPLE_BYTES
    reasons: list[str] = []
    if encoding == "auto":
        encoding, why = detect_encoding(sample)
        reasons += [f"{path.name} {why}; override with --set data.encoding"] if why else []
    lines = _complete_lines(_decoded(sample, encoding, path), whole=whole)
    if delimiter == "auto" or quoting == "auto":
        delimiter, quoting = detect_dialect(lines, delimiter=delimiter, quoting=quoting, suffix=path.suffix.lower())
        if quoting == "none" and '"' in lines:
            reasons.append("quotation marks are read as part of the text; override with --set data.quoting=minimal")
        if delimiter not in (",", NO_DELIMITER) and not (delimiter == "\t" and path.suffix.lower() == ".tsv"):
            reasons.append(f"fields end in {DELIMITERS[delimiter]}; override with --set data.delimiter")
    header = tuple(next(_records(lines, delimiter, "none" if quoting == "none" else "minimal")))
    _check_header(header, path)
    return Dialect(
        encoding=encoding,
        delimiter=delimiter,
        quoting="none" if quoting == "none" else "minimal",
        header=header,
        reasons=tuple(reasons),
    )


def detect_encoding(sample: bytes) -> tuple[str, str]:
    """(encoding, why) of the first bytes of a file; why is "" for plain UTF-8.

    A byte order mark decides. Otherwise UTF-8, unless nearly every line that holds more than ASCII is not UTF-8 and there
    are enough such lines (5, and 2 % of all) to say that the file and not the odd row is in another encoding.
    """
    for mark, name in BOMS:
        if sample.startswith(mark):
            return name, "" if name == "utf-8" else f"is {name.upper()} (byte order mark)"
    zeros = sample[1::2].count(0), sample[::2].count(0)
    if max(zeros) > 0.4 * len(sample) / 2:
        return (
            ("utf-16-le", "is UTF-16 without a mark")
            if zeros[0] > zeros[1]
            else ("utf-16-be", "is UTF-16 without a mark")
        )
    lines = sample.split(b"\n")[:-1] or [sample]
    beyond = [line for line in lines if not line.isascii()]
    wrong = sum(not _is_utf8(line) for line in beyond)
    if wrong >= 5 and wrong > 0.9 * len(beyond) and wrong > 0.02 * len(lines):
        return "cp1252", "is not UTF-8 and is read as Windows-1252 (Western European)"
    return "utf-8", ""


def detect_dialect(text: str, *, delimiter: str, quoting: str, suffix: str) -> tuple[str, str]:
    """(delimiter, quoting) under which most records have as many fields as the header, and the header at least two."""
    first = text.split("\n", 1)[0]
    if delimiter == "auto":
        order = ["\t", ",", ";", "|"] if suffix == ".tsv" else list(DELIMITERS)
        delimiters = [mark for mark in order if mark in first] or [NO_DELIMITER]
    else:
        delimiters = [delimiter]
    best, best_score = (delimiters[0], "minimal"), (-1.0, -1.0)
    for mark in delimiters:
        chosen = _quoting(text, mark) if quoting == "auto" else quoting
        records = list(_records(text, mark, chosen))
        width = len(records[0])
        agree = sum(len(record) == width for record in records) / len(records)
        score = (agree if width > 1 or mark == NO_DELIMITER else 0.0, float(width))
        if score > best_score:
            best, best_score = (mark, chosen), score
    return best


def _quoting(text: str, delimiter: str) -> Quoting:
    """The value "none" where quotation marks are plain characters: reading them as quotes breaks more records than it mends."""
    if '"' not in text:
        return "none" if delimiter == "\t" else "minimal"
    quoted, plain = list(_records(text, delimiter, "minimal")), list(_records(text, delimiter, "none"))
    width = len(plain[0])
    broken = sum(len(record) != len(quoted[0]) for record in quoted[:-1]) / len(quoted)
    broken_plain = sum(len(record) != width for record in plain) / len(plain)
    swallowed = sum(field.count("\n") > 0 and delimiter in field for record in quoted for field in record)
    if broken_plain == 0 and (broken > 0 or swallowed or (delimiter == "\t" and not _enclosed(plain))):
        return "none"
    return "minimal"


def _enclosed(records: list[list[str]]) -> bool:
    """Whether the fields that begin with a quotation mark end in one too, and there are such fields."""
    opened = [field for record in records for field in record if field.startswith('"')]
    return bool(opened) and all(len(field) > 1 and field.endswith('"') for field in opened)


def _records(text: str, delimiter: str, quoting: str) -> csv.Reader:  # pyright: ignore[reportAttributeAccessIssue]
    """The records of a sample, blank lines left out."""
    csv.field_size_limit(2 * SAMPLE_BYTES)
    mode = csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, quoting=mode)
    return (record for record in reader if record)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _decoded(sample: bytes, encoding: str, path: Path) -> str:
    """The sample as text; its last character may be cut in two, so what cannot be decoded is replaced here only."""
    try:
        text = sample.decode(encoding, errors="replace")
    except LookupError:
        raise DataError(
            f"data.encoding: {encoding!r} is no encoding that Python knows; try utf-8, cp1252 or utf-16"
        ) from None
    if not text.lstrip("\ufeff").strip():
        raise DataError(f"{path} is empty; it must hold a header line and at least one row")
    return text.lstrip("\ufeff")


def _complete_lines(text: str, *, whole: bool) -> str:
    """The text without its last, perhaps cut, line."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\n")
    return text if whole or "\n" not in text else text[: text.rindex("\n") + 1]


def _check_header(header: tuple[str, ...], path: Path) -> None:
    """DataError where two columns have one name."""
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise DataError(
            f"{path} has more than one column called {twice[0]!r}; give each column a name of its own in the header"
        )
