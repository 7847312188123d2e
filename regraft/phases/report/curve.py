"""curve.html: a learning curve over shares of the data as one self-contained page, without scripts and without any request."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regraft.config.secrets import redact
from regraft.core.files import replace_file
from regraft.phases.compare import FINE_TUNED, SCRATCH, Point, means, verdict
from regraft.phases.report.document import environment, style_hash, stylesheet
from regraft.phases.report.figures import Line, line_chart
from regraft.phases.report.words import decimal, short, whole

KINDS = {FINE_TUNED: "main", SCRATCH: "second"}


def write_curve(path: Path, points: Sequence[Point], *, title: str) -> None:
    """Write the page of a learning curve; an earlier one is replaced in one step."""
    page = environment().get_template("curve.html")
    content = page.render(v=view(points, title=title), css=stylesheet(), style_hash=style_hash())
    replace_file(path, redact(content).encode())


def view(points: Sequence[Point], *, title: str) -> dict[str, Any]:
    """What the template shows."""
    by_rows, by_steps = [], []
    most = max(point.rows for point in points)
    for strategy, kind in KINDS.items():
        found = [(float(rows), mean) for rows, mean in means(points, strategy)]
        by_rows.append(Line(name=strategy, points=found, kind=kind, marks=found))
        course = next(p.course for p in points if p.strategy == strategy and p.rows == most)
        by_steps.append(Line(name=strategy, points=course, kind=kind, marks=course))
    said = verdict(points)
    seeds = len({point.seed for point in points})
    return {
        "title": short(title, 80),
        "meta": f"{len(points)} trainings of {whole(seeds)} {'seed' if seeds == 1 else 'seeds'} each",
        "verdict": f"{said[0].upper()}{said[1:]}.",
        "data": line_chart(by_rows, x_label="Training rows", y_label="Test score", described=said),
        "course": line_chart(by_steps, x_label="Step", y_label="Validation score", described="Score over the steps"),
        "points": [
            {"strategy": p.strategy, "rows": whole(p.rows), "seed": p.seed, "score": decimal(p.score, 4)}
            for p in points
        ],
    }
