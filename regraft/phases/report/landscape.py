"""The part of the report on the loss around the trained weights, where `regraft landscape` has measured it."""

from __future__ import annotations

from typing import Any

from regraft.config.plain_json import plain_json
from regraft.phases.report.contours import contour_chart
from regraft.phases.report.figures import Line, line_chart
from regraft.phases.report.read import RunFiles
from regraft.phases.report.words import decimal, whole

FILE = "landscape.json"


def around(run: RunFiles) -> dict[str, Any] | None:
    """Figures of the slices and the measures of sharpness; None where the run has no landscape.json."""
    path = run.path / FILE
    if not path.is_file():
        return None
    found = plain_json(path.read_bytes())
    at, line = [float(a) for a in found["at"]], [float(v) for v in found["line"]]
    described = (
        f"Loss along a random direction: {decimal(found['loss'])} at the trained weights, {decimal(max(line))} at most"
    )
    points = list(zip(at, line, strict=True))
    centre = [(0.0, float(found["loss"]))]
    slices = [
        line_chart(
            [Line(name="trained weights", points=points, marks=centre)],
            x_label="Distance along a random direction, in lengths of the weights",
            y_label="Loss",
            described=described,
        )
    ]
    if found.get("plane"):
        described = "Lines of equal loss over two random directions, the trained weights in the middle"
        slices.append(
            contour_chart(
                found["plane"],
                x=at,
                y=at,
                x_label="First direction",
                y_label="Second direction",
                described=described,
                mark=(0.0, 0.0),
            )
        )
    facts = [(each["method"], f"{decimal(each['value'], 4)}: {each['what']}") for each in found["sharpness"]]
    facts.append(("Measured on", f"{whole(found['rows'])} {found['split']} rows; weights: {found['weights']}"))
    return {"figures": slices, "facts": facts}
