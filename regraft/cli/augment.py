"""The command about augmentation: check-augment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regraft.cli.app import app
from regraft.cli.options import Common, Set, command
from regraft.cli.screen import show_json, show_lines


@command(app, "check-augment")
def check_augment(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file to train, with augmentations.")],
    run: Annotated[str, typer.Option("--run", metavar="RUN", help="A finished run whose model is asked.")],
    looks: Annotated[int, typer.Option(min=100, help="Augmented examples the model is asked about.")] = 2000,
    most: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of a class that may be taken for another.")
    ] = 0.1,
    overrides: Set = None,
    common: Common = Common(),  # noqa: B008
) -> None:
    """Does an augmentation change the label? A trained model answers before and after."""
    from dataclasses import asdict

    from regraft.config.recipe import read_recipe
    from regraft.phases.augment_check import check_augment as checked
    from regraft.phases.augment_check import sentences
    from regraft.phases.opening import require_recipe

    found = checked(read_recipe(require_recipe(recipe), overrides or []), run, looks=looks, most=most)
    if common.json:
        show_json([asdict(one) | {"safe": one.safe} for one in found])
    else:
        show_lines(sentences(found))
        for one in found:
            show_lines([f"  {f.was} -> {f.becomes}: {f.count} of {f.of}, at least {f.least:.0%}" for f in one.flips])
    if not all(one.safe for one in found):
        raise typer.Exit(1)
