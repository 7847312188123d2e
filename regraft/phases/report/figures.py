"""Small SVG figures in one visual language: hairline axes, direct labels, colours from CSS variables, a text alternative.

Each function returns one `<svg>` element that scales with its column and takes its colours from the page, so it follows
light, dark and print. Nothing in it can run, and every label is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from regraft.phases.report.words import clean, decimal, short, whole

WIDTH, HEIGHT = 480, 300
MAP, LABEL = 640, 64  # least width of a map of counts, and of the names beside it
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 30, 44
FEW = 10  # rows in a bin of a reliability diagram below which it is drawn faintly
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart; `marks` are the points that carry a dot, `kind` a CSS class: main, second or faint."""

    name: str
    points: Sequence[Point]
    kind: str = "main"
    marks: Sequence[Point] = field(default=())


@dataclass(frozen=True, kw_only=True)
class Range:
    """One row of an interval chart: a value between two limits."""

    name: str
    value: float
    low: float
    high: float
    kind: str = "main"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 5, 10) if raw <= m * power * (1 + 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_label(value: float, step: float) -> str:
    """A tick as short as the distance to the next one allows."""
    if abs(value) >= 10_000:
        return f"{value / 1000:,.0f}k"
    places = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 2
    return f"{value:,.{places}f}".replace("-", "−")


def text(x: float, y: float, content: object, kind: str = "tick", anchor: str = "start") -> Markup:
    """One line of text at a point."""
    return Markup('<text x="{:.1f}" y="{:.1f}" class="{}" text-anchor="{}">{}</text>').format(
        x, y, kind, anchor, clean(content)
    )


def rule(x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> Markup:
    """One straight line."""
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, kind)


def bar(x: float, y: float, width: float, height: float, kind: str, *, opacity: float = 1, tip: str = "") -> Markup:
    """One rectangle with an optional tip shown on hover."""
    shape = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}" opacity="{:.2f}">').format(
        x, y, max(width, 0), max(height, 0), kind, opacity
    )
    return shape + (Markup("<title>{}</title>").format(clean(tip)) if tip else Markup("")) + Markup("</rect>")


def figure(
    parts: Sequence[Markup], *, described: str, width: int = WIDTH, height: int = HEIGHT, kind: str = ""
) -> Markup:
    """The SVG element around the parts, with what it shows in words for readers who do not see it."""
    return Markup('<svg viewBox="0 0 {} {}" class="figure {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, kind, clean(described), Markup("").join(parts)
    )


class Frame:
    """The plotting area of a chart: data to picture coordinates, and the axes drawn once."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], *, height: int = HEIGHT) -> None:
        self.x, self.y, self.bottom = x, y, height - BOTTOM

    def at(self, x: float, y: float) -> Point:
        """Picture coordinates of a point."""
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), self.bottom - up * (self.bottom - TOP)

    def axes(self, x_label: str, y_label: str, *, whole_x: bool = False) -> list[Markup]:
        """Horizontal grid lines with their numbers, the base line, x ticks and both axis names."""
        out = []
        levels, places = ticks(*self.y), ticks(*self.x)
        if whole_x:
            places = [place for place in places if place == round(place)]
        for level in levels:
            height = self.at(self.x[0], level)[1]
            out += [
                rule(LEFT, height, WIDTH - RIGHT, height),
                text(LEFT - 8, height + 4, tick_label(level, _gap(levels)), anchor="end"),
            ]
        for place in places:
            out.append(text(self.at(place, 0)[0], self.bottom + 18, tick_label(place, _gap(places)), anchor="middle"))
        out += [
            rule(LEFT, self.bottom, WIDTH - RIGHT, self.bottom, "axis"),
            text(LEFT - 8, 14, y_label, "name", "start"),
        ]
        return [*out, text(WIDTH - RIGHT, self.bottom + 36, x_label, "name", "end")]


def line_chart(
    lines: Sequence[Line], *, x_label: str, y_label: str, described: str, floor: float | None = None
) -> Markup:
    """Lines over one x axis, the legend above them when there are several; `floor` pulls the y axis down to a value."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + ([] if floor is None else [floor])
    frame = Frame((min(xs), max(xs)), padded(min(ys), max(ys), keep_low=floor is not None))
    parts = frame.axes(x_label, y_label, whole_x=True)
    for line in lines:
        path = " ".join("{:.1f},{:.1f}".format(*frame.at(x, y)) for x, y in line.points)
        parts.append(Markup('<polyline points="{}" class="line {}"/>').format(path, line.kind))
        for x, y in line.marks:
            parts.append(dot(*frame.at(x, y), line.kind, tip=f"{line.name}: {decimal(y)} at {decimal(x, 0)}"))
    return figure(parts + _legend([(line.name, line.kind) for line in lines]), described=described)


def padded(low: float, high: float, *, keep_low: bool = False) -> tuple[float, float]:
    """The range with a margin of 6 %, so that no line lies on the frame."""
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return (low if keep_low else low - margin), high + margin


def dot(x: float, y: float, kind: str, *, tip: str = "", radius: float = 4.5) -> Markup:
    """A dot with an optional tip."""
    inside = Markup("<title>{}</title>").format(clean(tip)) if tip else Markup("")
    return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{}" class="dot {}">{}</circle>').format(
        x, y, radius, kind, inside
    )


def interval_chart(rows: Sequence[Range], *, x_label: str, described: str) -> Markup:
    """One row for each value: its name, a line from low to high, a dot and the number."""
    step, top, right = 44, 8, 64
    height = top + step * len(rows) + BOTTOM
    low, high = padded(min(r.low for r in rows), max(r.high for r in rows))
    base = top + step * len(rows)

    def across(value: float) -> float:
        return 16 + (value - low) / (high - low) * (WIDTH - 16 - right)

    places = ticks(low, high)
    parts = [rule(across(p), top, across(p), base) for p in places]
    parts += [text(across(p), base + 18, tick_label(p, _gap(places)), anchor="middle") for p in places]
    for i, row in enumerate(rows):
        y = top + step * i + 30
        tip = f"{row.name}: {decimal(row.value)}, 95 % interval {decimal(row.low)} to {decimal(row.high)}"
        parts += [
            text(16, y - 12, row.name, "label"),
            rule(across(row.low), y, across(row.high), y, f"span {row.kind}"),
        ]
        parts += [
            dot(across(row.value), y, row.kind, tip=tip),
            text(WIDTH - 4, y + 4, decimal(row.value), "value", "end"),
        ]
    parts.append(text(WIDTH - right, base + 36, x_label, "name", "end"))
    return figure(parts, described=described, height=height)


def reliability_chart(bins: Sequence[dict], *, title: str, described: str) -> Markup:
    """Share of hits against stated probability, the diagonal, and below it how many rows each bin holds."""
    filled = [b for b in bins if b.get("count")]
    most = max((b["count"] for b in filled), default=1)
    height, strip = HEIGHT + 60, 48
    frame = Frame((0, 1), (0, 1), height=height - strip)
    parts = frame.axes("", "Share that was right")
    base = height - 26
    for b in filled:
        (x0, y0), (x1, y1) = frame.at(b["low"], b["accuracy"]), frame.at(b["high"], b["confidence"])
        tip = f"stated {decimal(b['confidence'])}, right {decimal(b['accuracy'])}, {whole(b['count'])} rows"
        sure = 1.0 if b["count"] >= FEW else 0.35
        lower = max(y0, y1)
        parts.append(bar(x0 + 1, min(y0, y1), x1 - x0 - 2, frame.bottom - min(y0, y1), "fill paper"))
        parts.append(bar(x0 + 1, lower, x1 - x0 - 2, frame.bottom - lower, "fill main", opacity=0.8 * sure, tip=tip))
        parts.append(bar(x0 + 1, min(y0, y1), x1 - x0 - 2, abs(y1 - y0), "fill second", opacity=0.5 * sure, tip=tip))
        parts.append(rule(x0 + 1, y0, x1 - 1, y0, "level" if b["count"] >= FEW else "level few"))
        tall = (strip - 14) * b["count"] / most
        parts.append(bar(x0 + 1, base - tall, x1 - x0 - 2, tall, "fill faint", tip=f"{whole(b['count'])} rows"))
    parts += [rule(*frame.at(0, 0), *frame.at(1, 1), "ideal"), rule(LEFT, base, WIDTH - RIGHT, base, "axis")]
    parts += [
        text(LEFT - 8, base - 2, "rows", "tick", "end"),
        text(WIDTH - RIGHT, base + 20, "Stated probability", "name", "end"),
    ]
    parts.append(text(WIDTH - RIGHT, 14, title, "label", "end"))
    return figure(parts, described=described, height=height)


def heat_map(counts: Sequence[Sequence[int]], names: Sequence[str], *, described: str) -> Markup:
    """Confusion counts: a row for each label, a column for each prediction; right ones and errors in two colours.

    The shade is the square root of the share of the row, so that single errors stay visible. Columns carry the number of
    the class that stands before its name in the rows.
    """
    size, longest = len(names), max(len(short(name, 28)) for name in names)
    side, left, top = 24, max(LABEL, 36 + 8 * longest), 40
    parts = [text(left, 14, "Predicted", "name"), text(0, top - 8, "Label", "name")]
    for i, row in enumerate(counts):
        total = max(sum(row), 1)
        y = top + side * i
        parts += [
            text(left - 8, y + 16, str(i + 1), "tick", "end"),
            text(left - 32, y + 16, short(names[i], 28), "label", "end"),
        ]
        parts.append(text(left + side * i + side / 2, top - 8, str(i + 1), "tick", "middle"))
        for j, count in enumerate(row):
            tip = f"{names[i]} predicted as {names[j]}: {whole(count)} of {whole(total)}"
            kind = "fill main" if i == j else "fill second" if count else "fill empty"
            shade = 0.15 + 0.85 * math.sqrt(count / total) if count else 1
            parts.append(bar(left + side * j + 1, y + 1, side - 2, side - 2, kind, opacity=shade, tip=tip))
            if count:
                strong = "cell strong" if shade > 0.62 else "cell"
                parts.append(text(left + side * (j + 0.5), y + 16, whole(count), strong, "middle"))
    wide = max(MAP, left + side * size + 2)  # few classes are not blown up
    return figure(parts, described=described, width=wide, height=top + side * size + 4, kind="map")


def _legend(entries: Sequence[tuple[str, str]]) -> list[Markup]:
    """Names with a sample of their line, right to left along the top; faint lines share one entry, a single line has none."""
    faint = [name for name, kind in entries if kind == "faint"]
    shown = [(name, kind) for name, kind in entries if kind != "faint"]
    if faint:
        shown.insert(0, (faint[0] if len(faint) == 1 else f"{len(faint)} others", "faint"))
    if len(shown) < 2:
        return []
    parts, x = [], WIDTH - RIGHT
    for name, kind in reversed(shown):
        label = short(name, 18)
        parts.append(text(x, 14, label, "label", "end"))
        x -= 8 * len(label) + 8  # wide enough for the usual fonts at 14 px
        parts.append(rule(x - 16, 10, x, 10, f"line {kind}"))
        x -= 30
    return parts


def _gap(values: Sequence[float]) -> float:
    """Distance between neighbouring ticks."""
    return values[1] - values[0] if len(values) > 1 else abs(values[0]) or 1.0
