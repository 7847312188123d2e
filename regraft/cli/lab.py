"""Commands that show how training behaves: the loss around a minimum."""

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
