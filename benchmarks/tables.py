"""Markdown tables of measured figures: result files read, numbers written, cells aligned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
UNMEASURED = "Not measured yet; `make bench` does it.\n"


def results(name: str) -> Any:
    """What a benchmark wrote, or None before it was run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def table(header: list[str], rows: list[list[str]], *, numbers_from: int) -> str:
    """A Markdown table; the columns from `numbers_from` on are aligned to the right."""
    rule = ["---" if column < numbers_from else "---:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows]) + "\n"


def number(value: float | None, digits: int = 3) -> str:
    """A value with fixed digits, or a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"
