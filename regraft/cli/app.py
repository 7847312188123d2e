"""The typer application: every command, imported without anything heavy."""

from __future__ import annotations

from typing import Annotated

import typer

from regraft.cli.panels import Ordered

app = typer.Typer(
    cls=Ordered,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a pretrained network and your own data to a calibrated model and a report you can believe.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"regraft {version('regraft')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """From a pretrained network and your own data to a calibrated model and a report you can believe."""


from regraft.cli import augment, cache, catalogue, data, dtypes, export, jobs, lab, models, search, transfer  # noqa: E402  # they add their commands to `app`

__all__ = [
    "app",
    "augment",
    "cache",
    "catalogue",
    "data",
    "dtypes",
    "export",
    "jobs",
    "lab",
    "models",
    "search",
    "transfer",
]
