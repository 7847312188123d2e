"""The figures of a search's page: parallel coordinates, and results against a cost, in the manner of the report's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from regraft.phases.report.figures import BOTTOM, HEIGHT, Frame, dot, figure, padded, rule, text, tick_label, ticks
from regraft.phases.report.words import scaled, short
from regraft.search.space import Choice, Range

WIDE, TALL, SIDE, HEAD, FOOT = 760, 340, 56, 46, 44
MOST_AXES = 8


@dataclass(frozen=True)
class Axis:
    """One field: where a value lies (0 at the bottom, 1 at the top), and the labels at its ticks."""

    name: str
    domain: Range | Choice
    labels: Sequence[tuple[float, str]]

    def at(self, value: float) -> float:
        """Height of a value."""
        if isinstance(self.domain, Range):
            return self.domain.share(value)
        last = len(self.domain.options) - 1
        return value / last if last else 0.5


def axis_of(name: str, domain: Range | Choice) -> Axis:
    """The axis of a field."""
    if isinstance(domain, Choice):
        last = max(1, len(domain.options) - 1)
        height = [i / last if len(domain.options) > 1 else 0.5 for i in range(len(domain.options))]
        return Axis(name, domain, [(h, short(option_name(o), 12)) for h, o in zip(height, domain.options, strict=True)])
    ends = [(0.0, domain.low), (1.0, domain.high)]
    return Axis(name, domain, [(share, f"{value:.3g}") for share, value in ends])


def option_name(option: Any) -> str:
    """An option in a word: `AdamW` of {AdamW: {...}}, `LoRA+SAM` of a list of techniques."""
    if isinstance(option, Mapping):
        return "+".join(map(str, option)) or "none"
    if isinstance(option, list | tuple):
        return "+".join(option_name(item) for item in option) or "none"
    return "none" if option is None else str(option)


def field_name(path: str) -> str:
    """The end of a field's path that tells it from others: `AdamW.lr` of `train.optimizer[0].AdamW.lr`."""
    parts = path.split(".")
    return parts[-1] if parts[-2:-1] in ([], ["train"]) or parts[-1].isdigit() else ".".join(parts[-2:])


def parallel(
    trials: Sequence[Mapping[str, Any]], axes: Sequence[Axis], results: Mapping[int, float], *, best: int, name: str
) -> Markup:
    """Parallel coordinates: a line for each trial over the axes of its fields, the result as the last axis."""
    axes = axes[:MOST_AXES]
    low, high = min(results.values()), max(results.values())
    step = (WIDE - 2 * SIDE) / len(axes)
    base, room = TALL - FOOT, TALL - FOOT - HEAD

    def place(column: int, share: float) -> tuple[float, float]:
        return SIDE + column * step, base - share * room

    parts: list[Markup] = []
    ordered = sorted(
        trials, key=lambda trial: (trial["trial"] == best, trial["share"] == 1, results.get(trial["trial"], low))
    )
    for trial in ordered:
        if trial["trial"] not in results:
            continue
        drawn = trial["drawn"]
        points = [place(i, axis.at(drawn[axis.name]) if axis.name in drawn else -0.08) for i, axis in enumerate(axes)]
        points.append(place(len(axes), (results[trial["trial"]] - low) / ((high - low) or 1)))
        kind = "second" if trial["trial"] == best else "main" if trial["share"] == 1 else "faint"
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        strong = 1.0 if kind == "second" else 0.75
        parts.append(Markup('<polyline points="{}" class="line {}" opacity="{}"/>').format(path, kind, strong))
    names = [short(field_name(axis.name), 17) for axis in axes] + [name]
    labels = [axis.labels for axis in axes] + [[(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")]]
    for column, (title, marks) in enumerate(zip(names, labels, strict=True)):
        x, bottom = place(column, 0)
        anchor = "end" if column == len(axes) else "start" if column == 0 else "middle"
        parts += [
            rule(x, bottom, x, bottom - room, "axis"),
            text(
                x - 40 if column == 0 else x + 40 if column == len(axes) else x,
                14 + 16 * (column % 2),
                title,
                "name",
                anchor,
            ),
        ]
        parts += [text(x + 6, bottom - share * room + 4, mark, "label") for share, mark in marks]
    described = (
        f"Parallel coordinates of {len(results)} trials over {len(axes)} fields; {name} from {low:.3g} to {high:.3g}."
    )
    return figure(parts, described=described, width=WIDE, height=TALL, kind="map")


def against(points: Mapping[int, tuple[float, float]], front: Sequence[int], *, x_label: str, y_label: str) -> Markup:
    """Results (up) against a cost (right, on a logarithmic scale where it spans more than a factor of 10), by trial."""
    xs, ys = [x for x, _ in points.values()], [y for _, y in points.values()]
    log = min(xs) > 0 and max(xs) > 10 * min(xs)

    def along(x: float) -> float:
        return math.log10(x) if log else x

    frame = Frame(padded(along(min(xs)), along(max(xs))), padded(min(ys), max(ys)))
    levels = ticks(*frame.y)
    gap = levels[1] - levels[0] if len(levels) > 1 else 1.0
    parts: list[Markup] = []
    for level in levels:
        left, right = frame.at(frame.x[0], level), frame.at(frame.x[1], level)
        parts += [rule(*left, *right), text(left[0] - 8, left[1] + 4, tick_label(level, gap), anchor="end")]
    marks = (
        [float(n) for n in range(math.ceil(frame.x[0]), math.floor(frame.x[1]) + 1)]
        if log
        else ticks(*frame.x, count=4)
    )
    for mark in marks:
        x = frame.at(mark, 0)[0]
        parts.append(text(x, frame.bottom + 18, scaled(float(f"{10**mark if log else mark:.3g}"), ""), anchor="middle"))
    ends = frame.at(frame.x[0], frame.y[0]), frame.at(frame.x[1], frame.y[0])
    parts += [
        rule(ends[0][0], frame.bottom, ends[1][0], frame.bottom, "axis"),
        text(ends[0][0] - 44, 14, y_label, "name"),
    ]
    parts.append(text(ends[1][0], HEIGHT - BOTTOM + 36, x_label, "name", "end"))
    for number, (x, y) in sorted(points.items(), key=lambda item: item[0] in front):
        kind = "second" if number in front else "faint"
        parts.append(dot(*frame.at(along(x), y), kind, tip=f"trial {number}: {y:.4f} at {x:.4g}"))
    return figure(
        parts, described=f"{y_label} against {x_label} of {len(points)} trials; {len(front)} on the Pareto front."
    )
