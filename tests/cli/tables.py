"""Small tables for the tests of the command line."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

HEADER = ["width", "height", "place", "kind"]


def write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])
    return path


def points(rows: int = 120, *, seed: int = 0, classes: int = 2) -> list[list[Any]]:
    """Rows of two numbers, a place and a class that the first number decides."""
    drawn = np.random.default_rng(seed)
    out = []
    for _ in range(rows):
        kind = int(drawn.integers(classes))
        out.append(
            [
                round(float(drawn.normal() + 3 * kind), 3),
                round(float(drawn.normal()), 3),
                str(drawn.choice(["north", "south"])),
                "abc"[kind],
            ]
        )
    return out
