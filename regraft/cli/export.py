"""Commands that write a finished model in another form: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regraft.cli.app import app
from regraft.cli.options import Common, Run, command
from regraft.cli.screen import show_json, show_lines


@command(app)
def export(
    run: Run,
    delta: Annotated[
        Path | None, typer.Option("--delta", metavar="OUT", help="Write only what differs from the pretrained base.")
    ] = None,
    merged: Annotated[
        Path | None, typer.Option("--merged", metavar="OUT", help="Write a plain model with LoRA added to its weights.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="With --delta: where the base is now, if it was moved.")
    ] = None,
    common: Common = Common(),  # noqa: B008
) -> None:
    """A finished model as what it differs in from its base, or with its LoRA merged."""
    from regraft.errors import ConfigError
    from regraft.phases.export import export_delta, export_merged

    if (delta is None) == (merged is None):
        raise ConfigError("regraft export: say what to write, one of --delta OUT and --merged OUT")
    if base is not None and delta is None:
        raise ConfigError("--base: a merged model needs none; leave it out")
    made = export_delta(run, delta, base=base) if delta is not None else export_merged(run, merged or Path())
    if common.json:
        show_json(made.to_json())
        return
    show_lines([made.sentence()])
