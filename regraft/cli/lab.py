"""Commands that show how training behaves: landscape, lab."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regraft.cli.app import app
from regraft.cli.chart import curve
from regraft.cli.options import Common, Set, command
from regraft.cli.screen import show_json, show_lines, show_table


@command(app)
def landscape(
    what: Annotated[
        Path, typer.Argument(metavar="RUN|RECIPE", help="A finished run, or a recipe file, which is trained first.")
    ],
    grid: Annotated[int, typer.Option(help="Points along a direction, an odd number.")] = 21,
    dimensions: Annotated[int, typer.Option(min=1, max=2, help="2 draws a plane too: GRID squared passes.")] = 1,
    span: Annotated[float, typer.Option(min=0.0, help="How far to go; 1 is as far as the weights are long.")] = 1.0,
    rows: Annotated[int, typer.Option(min=1, help="Examples that the loss is over.")] = 256,
    split: Annotated[str, typer.Option(help="train or valid.")] = "train",
    seed: Annotated[int, typer.Option(help="Of the directions and the rows.")] = 0,
    overrides: Set = None,
    common: Common = Common(),  # noqa: B008
) -> None:
    """The loss around the trained weights, along filter-normalised random directions, and how sharp the minimum is."""
    from regraft.phases.landscape import landscape as loss_around
    from regraft.phases.landscape import write_landscape
    from regraft.phases.report.document import write_report

    found = loss_around(
        what,
        grid=grid,
        dimensions=dimensions,
        span=span,
        rows=rows,
        split=split,
        seed=seed,
        overrides=tuple(overrides or ()),
    )
    if what.is_dir():
        write_landscape(found, what)
        write_report(what)
    if common.json:
        show_json(found.to_json())
        return
    top = found.loss + 10 * max(1e-12, min(found.line[0], found.line[-1]) - found.loss)
    show_lines([f"loss over {found.rows:,} {found.split} rows, from {-span:g} to {span:g} along a random direction"])
    show_lines(curve([min(each, top) for each in found.line], unit="points"))
    show_lines([f"{found.loss:.4g} at the trained weights ({found.weights}); lowest at {found.lowest_at:g}", ""])
    rows_ = [(each.method, f"{each.value:.4g}", each.what) for each in found.sharpness]
    show_table("", ("sharpness", "value", "what it is"), rows_, right=("value",))
    if what.is_dir():
        show_lines(["", f"Pictures: {what / 'report.html'}"])


@command(app)
def lab(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A demonstration; without one they are listed.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with pictures to this new file.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn at random.")] = 0,
    common: Common = Common(),  # noqa: B008
) -> None:
    """Demonstrations of how training behaves: saddles, noise, momentum, batches; computed, drawn and explained."""
    from regraft.errors import RunError
    from regraft.phases.lab.page import html as page_of
    from regraft.phases.lab.parts import Chart
    from regraft.phases.lab.registry import demonstration, summaries

    if name is None:
        listed = summaries()
        if common.json:
            show_json(listed)
        else:
            show_table("", ("name", "what it shows"), list(listed.items()))
        return
    if html is not None and html.exists():
        raise RunError(f"{html} exists; a page is only written to a new file, give another --html")
    found = demonstration(name, seed=seed)
    if html is not None:
        html.write_text(page_of(found), encoding="utf-8")
    if common.json:
        show_json(
            {
                "name": name,
                "title": found.title,
                "findings": [*found.findings, *found.measured],
                "numbers": found.numbers,
            }
        )
        return
    show_lines([found.title, "", found.about, ""])
    show_lines([f"- {finding}" for finding in (*found.findings, *found.measured)])
    for table in found.tables:
        show_table("", tuple(table.columns), [tuple(row) for row in table.rows])
    for chart in found.charts:
        for line in chart.lines if isinstance(chart, Chart) else ():
            show_lines(["", f"{chart.title}: {line.name}", *curve([y for _, y in line.points], height=5)])
    if html is not None:
        show_lines(["", f"Page: {html}"])
