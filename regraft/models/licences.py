"""What licence a model folder states, and whether it allows commercial use. An aid to reading, no legal advice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.errors import ModelError

HEAD = 20_000  # characters of a text that are looked at
FILES = ("LICENSE", "LICENCE", "COPYING", "LICENSE.txt", "LICENSE.md", "LICENCE.txt", "LICENCE.md")
PHRASES = (  # what the text of a licence file says -> how hubs call the licence; the first that is found
    (r"attribution-noncommercial-sharealike", "cc-by-nc-sa-4.0"),
    (r"attribution-noncommercial", "cc-by-nc-4.0"),
    (r"nvidia source code license", "nvidia-source-code-nc"),
    (r"creativeml open rail", "creativeml-openrail-m"),
    (r"llama \d[\d.]* community license", "llama-community"),
    (r"apache license\s+version 2\.0", "apache-2.0"),
    (r"gnu affero general public license", "agpl-3.0"),
    (r"gnu lesser general public license", "lgpl"),
    (r"gnu general public license", "gpl"),
    (r"attribution-sharealike", "cc-by-sa-4.0"),
    (r"attribution 4\.0 international", "cc-by-4.0"),
    (r"neither the names? of", "bsd-3-clause"),
    (r"redistribution and use in source and binary forms", "bsd-2-clause"),
    (r"permission is hereby granted, free of charge", "mit"),
)
NON_COMMERCIAL = re.compile(r"(^|[^a-z])nc([^a-z]|$)|non-?\s?commercial|research[- ]only", re.IGNORECASE)
COMMERCIAL = re.compile(  # a family, its version, and words that change nothing of this
    r"(apache|mit|bsd|isc|cc0|cc-by(-sa)?|unlicense|wtfpl|zlib|l?gpl|agpl|mpl|llama|gemma)"
    r"([- ]?v?\d[\w.]*)?([- ](clause|or-later|only|clear|universal|community|licen[sc]e))*"
    r"|.*openrail[\w.-]*|bigscience[\w.-]*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Stated:
    """A licence as it is stated, and in which file."""

    name: str
    where: str


def stated_licence(folder: Path, config: Mapping[str, Any]) -> Stated | None:
    """The licence in config.json, in the head of the README, in its text, or in a licence file; None where there is none."""
    if isinstance(config.get("license"), str):
        return Stated(str(config["license"]), "config.json")
    readme = folder / "README.md"
    if readme.is_file():
        text = _head(readme)
        named = _named_in_front_matter(text)
        if named is not None:
            return Stated(named, "README.md")
        found = re.search(r"^\*\*Licence[^*]*\*\*\s*([\w.+-]+)", text, re.MULTILINE)
        if found:
            return Stated(found[1], "README.md")
    for name in FILES:
        if (folder / name).is_file():
            text = " ".join(_head(folder / name).lower().split())
            known = next((licence for pattern, licence in PHRASES if re.search(pattern, text)), None)
            return Stated(known or "other", name)
    return None


def _named_in_front_matter(text: str) -> str | None:
    """The licence of a line `license: ...` or `license_name: ...`; of a list the first that may forbid commercial use."""
    item = r"[\"']?([^\s\"'#\[\],]+)"
    found = re.search(
        rf"^license(?:_name)?:[ \t]*(?:{item}|\[([^\]]+)\]|((?:\n[ \t]*-[ \t]+[^\n]+)+))", text, re.MULTILINE
    )
    if found is None:
        return None
    if found[1]:
        return found[1]
    names = re.findall(item, found[2] or re.sub(r"^[ \t]*-", "", found[3], flags=re.MULTILINE))
    return next((name for name in names if not allows_commercial_use(name)), names[0]) if names else None


def _head(file: Path) -> str:
    """The beginning of a text file; it may be of any size, for a stranger wrote it."""
    with file.open(encoding="utf-8", errors="replace") as opened:
        return opened.read(HEAD)


def stated_by(folder: Path) -> str | None:
    """The name of the licence that a model folder states; None where it states none."""
    from regraft.models.safety import read_json

    found = stated_licence(folder, read_json(folder / "config.json") if (folder / "config.json").is_file() else {})
    return None if found is None else found.name


def allows_commercial_use(licence: str | None) -> bool | None:
    """Does a licence, by its name, allow commercial use? None where it is not stated or not known. Conditions may apply."""
    if licence is None:
        return None
    if NON_COMMERCIAL.search(licence):
        return False
    return True if COMMERCIAL.fullmatch(licence.strip()) else None


def why_not_commercial(licence: str | None) -> str | None:
    """The reason that speaks against commercial use; None where the licence allows it."""
    allowed = allows_commercial_use(licence)
    if allowed:
        return None
    if licence is None:
        return "its licence is not stated, so commercial use is not known to be allowed"
    if allowed is False:
        return f"its licence {licence} forbids commercial use"
    return f"its licence {licence} is not known here, so commercial use is not known to be allowed"


def require_commercial(name: str, licence: str | None) -> None:
    """A ModelError unless the licence of a model is known to allow commercial use."""
    reason = why_not_commercial(licence)
    if reason is not None:
        raise ModelError(
            f"{name!r}: {reason}; give another model, or leave out `models.main.commercial` once you have checked it"
        )
