"""A curve in a terminal, drawn with braille dots: two across and four down in each character."""

from __future__ import annotations

from collections.abc import Sequence

DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # left and right column, from the top


def curve(values: Sequence[float], *, width: int = 64, height: int = 8, unit: str = "") -> list[str]:
    """Lines of a chart of values over 0 .. len(values) - 1, the largest and least value written at its left.

    Args:
        values: at least one finite number.
        width: characters of the plot, without the labels.
        height: lines of the plot; the line below it counts the values.
        unit: what the values are counted in, such as "steps".
    """
    low, high = min(values), max(values)
    span = high - low or 1.0
    cells = [[0] * width for _ in range(height)]
    columns, rows, before = 2 * width, 4 * height, None
    for column in range(columns):
        value = values[min(len(values) - 1, column * len(values) // columns)]
        row = round((high - value) / span * (rows - 1))
        for dot in range(min(row, before if before is not None else row), max(row, before or row) + 1):
            cells[dot // 4][column // 2] |= DOTS[column % 2][dot % 4]  # a jump is a line, not a gap
        before = row
    labels = [f"{high:.3g}", *[""] * (height - 2), f"{low:.3g}"] if height > 1 else [f"{high:.3g}"]
    margin = max(map(len, labels))
    lines = [
        f"{label:>{margin}} ┤{''.join(chr(0x2800 + cell) for cell in row).rstrip(chr(0x2800))}"
        for label, row in zip(labels, cells, strict=True)
    ]
    end = f"{len(values):,} {unit}".rstrip()
    return [*lines, f"{'':>{margin}} └{'─' * (width - len(end) - 1)} {end}"]
