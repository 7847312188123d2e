"""Contour lines of a grid of numbers as SVG, with paths over them: a loss surface from above."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from regraft.phases.report.figures import HEIGHT, LEFT, WIDTH, Frame, Line, Point, dot, figure, text
from regraft.phases.report.words import decimal

LEVELS = 10
ROW, IN_A_ROW = 18, 3  # of a legend


def contour_chart(
    grid: Sequence[Sequence[float]],
    *,
    x: Sequence[float],
    y: Sequence[float],
    x_label: str,
    y_label: str,
    described: str,
    paths: Sequence[Line] = (),
    mark: Point | None = None,
) -> Markup:
    """Lines of equal height over a grid, `grid[i][j]` being the height at (x[j], y[i]); paths and one point lie on top.

    Heights rise by a constant factor above the least from line to line, so that a steep wall does not hide the floor. Each line
    tells its height on hover.
    """
    frame = Frame((x[0], x[-1]), (y[0], y[-1]))
    parts = frame.axes(x_label, y_label)
    for level in levels(grid):
        pieces = segments(grid, x, y, level)
        drawn = "".join(
            "M{:.0f} {:.0f}L{:.0f} {:.0f}".format(*frame.at(*one), *frame.at(*other)) for one, other in pieces
        )
        tip = Markup("<title>{}</title>").format(decimal(level))
        parts.append(Markup('<path d="{}" class="line contour">{}</path>').format(drawn, tip))
    for path in paths:
        inside = [frame.at(*p) for p in path.points if x[0] <= p[0] <= x[-1] and y[0] <= p[1] <= y[-1]]
        points = " ".join(f"{a:.0f},{b:.0f}" for a, b in inside)
        parts.append(Markup('<polyline points="{}" class="line {}"/>').format(points, path.kind))
        parts += [dot(*inside[-1], path.kind, tip=path.name, radius=3.5)] if inside else []
    parts += [dot(*frame.at(*mark), "main", tip="trained weights")] if mark is not None else []
    return figure([*parts, *legend(paths)], described=described, height=HEIGHT + legend_height(paths))


def legend(lines: Sequence[Line]) -> list[Markup]:
    """The names of lines below a chart in the colours of their kinds, three in a row."""
    across = (WIDTH - LEFT) // IN_A_ROW
    return [
        text(
            LEFT + across * (k % IN_A_ROW),
            HEIGHT + ROW * (k // IN_A_ROW + 1) - 4,
            f"— {line.name}",
            f"label {line.kind}",
        )
        for k, line in enumerate(lines)
    ]


def legend_height(lines: Sequence[Line]) -> int:
    """What a legend adds to the height of a chart."""
    return ROW * -(-len(lines) // IN_A_ROW) + (6 if lines else 0)


def levels(grid: Sequence[Sequence[float]]) -> list[float]:
    """Heights of the lines: from a hundredth of the range above the least to just below the greatest, evenly in the logarithm."""
    finite = [value for row in grid for value in row if math.isfinite(value)]
    low, span = min(finite), max(finite) - min(finite)
    if span <= 0:
        return []
    return [low + span * 10 ** (-2.5 * (1 - step / LEVELS)) for step in range(LEVELS)]


def segments(
    grid: Sequence[Sequence[float]], x: Sequence[float], y: Sequence[float], level: float
) -> Iterator[tuple[Point, Point]]:
    """Straight pieces of the line at a height, by marching squares: each cell is crossed where its sides are."""
    for i in range(len(y) - 1):
        for j in range(len(x) - 1):
            corners = [(i, j), (i, j + 1), (i + 1, j + 1), (i + 1, j)]
            crossed = []
            for (a, b), (c, d) in zip(corners, [*corners[1:], corners[0]], strict=True):
                one, other = grid[a][b] - level, grid[c][d] - level
                if math.isfinite(one) and math.isfinite(other) and (one < 0) != (other < 0):
                    share = one / (one - other)
                    crossed.append((x[b] + share * (x[d] - x[b]), y[a] + share * (y[c] - y[a])))
            yield from zip(crossed[::2], crossed[1::2], strict=False)
