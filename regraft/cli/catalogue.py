"""Commands that look at recipes and at what they can name: techniques, explain, schedule, lint, lr."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regraft.cli.app import app
from regraft.cli.chart import curve
from regraft.cli.options import Common, Set, command
from regraft.cli.screen import show_json, show_lines, show_table


@command(app)
def techniques(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One of them, in full.")] = None,
    common: Common = Common(),  # noqa: B008
) -> None:
    """The catalogue of everything a recipe can name."""
    from regraft.phases.describing import catalogue, entry, entry_lines

    if name is None:
        listed = catalogue()
        if common.json:
            show_json(listed)
            return
        rows = [(one["family"], one["name"], one["what"]) for one in listed]
        show_table("", ("family", "name", "what it is"), rows)
        return
    found = entry(name)
    if common.json:
        show_json(found)
    else:
        show_lines(entry_lines(found))


@command(app)
def explain(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.")],
    overrides: Set = None,
    common: Common = Common(),  # noqa: B008
) -> None:
    """What a recipe compiles to, and where each of its values comes from."""
    from regraft.phases.describing import explained, values_of

    values = values_of(recipe, overrides or [])
    nest = explained(recipe, overrides or [])
    if common.json:
        show_json({"values": values, "compiled": nest})
        return
    show_table("", ("field", "from", "value"), [(v["field"], v["from"], v["shown"]) for v in values])
    show_lines(["", *nest])


@command(app)
def schedule(
    what: Annotated[
        str, typer.Argument(metavar="RECIPE|SCHEDULE", help="A recipe file, or a schedule as in one: `OneCycle`.")
    ],
    steps: Annotated[int, typer.Option(min=1, help="Steps of a stage whose length is not known yet.")] = 1000,
    overrides: Set = None,
    common: Common = Common(),  # noqa: B008
) -> None:
    """Draw the learning rate, and the momentum where it changes, over every stage of a recipe."""
    from regraft.phases.schedules import traces

    found = traces(what, overrides or [], steps=steps)
    if common.json:
        show_json(found)
        return
    for trace in found:
        show_lines([f"{trace['stage']}: {trace['schedule']}", "", "learning rate"])
        show_lines(curve(trace["rates"], unit="steps"))
        if trace["momenta"] is not None:
            show_lines(["", "momentum", *curve(trace["momenta"], height=4, unit="steps")])
        show_lines(["", trace["conditions"]] if trace["conditions"] else [])
        show_lines([""])


@command(app)
def lint(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file to train.")],
    overrides: Set = None,
    common: Common = Common(),  # noqa: B008
) -> None:
    """Advice on a recipe: what is likely to go wrong with it, who found that out, and what to write instead."""
    from dataclasses import asdict

    from regraft.config.recipe import read_recipe
    from regraft.phases.advice.lint import lint as findings_of

    found = findings_of(read_recipe(recipe, overrides or []))
    if common.json:
        show_json([asdict(finding) for finding in found])
    for finding in [] if common.json else found:
        show_lines([f"{finding.severity}: {finding.code}  {finding.where}", f"  {finding.reason}"])
        show_lines([f"  fix: {finding.fix}", f"  source: {finding.source}", ""])
    if not found and not common.json:
        show_lines(["Nothing to object to."])
    if any(finding.severity == "warning" for finding in found):
        raise typer.Exit(1)


@command(app)
def lr(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file to train.")],
    low: Annotated[float, typer.Option(min=0.0, help="Rate of the first step.")] = 1e-6,
    high: Annotated[float, typer.Option(min=0.0, help="Rate of the last step.")] = 1.0,
    steps: Annotated[int, typer.Option(min=20, help="Steps of the test.")] = 100,
    overrides: Set = None,
    common: Common = Common(),  # noqa: B008
) -> None:
    """Find a learning rate by a range test: the rate rises, the loss falls and rises again, the suggestion lies between."""
    from dataclasses import asdict

    from regraft.config.recipe import read_recipe
    from regraft.errors import ConfigError
    from regraft.phases.rate_finder import range_test

    if not 0 < low < high:
        raise ConfigError(f"--low and --high: must be rates with 0 < low < high, got {low:g} and {high:g}")
    spec = read_recipe(recipe, overrides or [])
    found = range_test(spec, low=low, high=high, steps=steps)
    if common.json:
        show_json(asdict(found))
        return
    most = max(found.smooth[: found.smooth.index(min(found.smooth)) + 1])
    show_lines(
        ["loss, smoothed, as the rate rises", *curve([min(each, 1.2 * most) for each in found.smooth], unit="steps")]
    )
    show_lines([f"rates from {found.rates[0]:.2g} to {found.rates[-1]:.2g}; the loss is least at {found.lowest:.2g}"])
    field = f"train.optimizer.{type(spec.train.optimizer).__name__}.lr"
    show_lines(["", f"Suggested: {found.suggestion:g} (--set {field}={found.suggestion:g})"])
