"""Commands that show what there is: techniques, explain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regraft.cli.app import app
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
