"""The commands in the order and under the headings in which `regraft --help` shows them."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

PANELS: dict[str, tuple[str, ...]] = {
    "The path": ("demo", "audit", "plan", "adapt", "resume", "predict", "evaluate", "report", "diff", "export"),
    "Recipes": ("train", "search", "techniques", "explain", "lint", "lr", "schedule", "check-augment"),
    "Understanding": ("compare", "curve", "layers", "landscape", "lab"),
    "This machine": ("models", "dtypes", "cache"),
}


def panel_of(command: str) -> str:
    """The heading of a command; a KeyError for one that has none."""
    return {name: panel for panel, names in PANELS.items() for name in names}[command]


class Ordered(TyperGroup):
    """Commands in the order of `PANELS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All of them, those of a panel together."""
        order = [name for names in PANELS.values() for name in names]
        return sorted(super().list_commands(ctx), key=order.index)
