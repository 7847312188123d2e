"""Complete recipes, one file for each shape of training; every one runs as it is, on data that comes with regraft."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def recipes() -> dict[str, Path]:
    """The recipe files by name, in alphabetical order."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.yaml"))}
