"""Commands that help to choose what is transferred, and how much of it trains: layers, models, compare, curve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from regraft.cli.app import app
from regraft.cli.options import Common, Set, command
from regraft.cli.screen import show_json, show_lines, show_table

METRICS, GROUPS = ("fisher", "gradient", "angle"), ("block", "module")


def one_of(option: str, value: str, valid: tuple[str, ...]) -> str:
    """The value, if it is one of those an option takes; else a ConfigError with the nearest."""
    from regraft.errors import ConfigError, suggest

    if value not in valid:
        raise ConfigError(f"{option}: must be one of {', '.join(valid)}, got {value!r}{suggest(value, valid)}")
    return value


@command(app)
def layers(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE|RUN", help="A recipe file to train; for the angle a run.")],
    metric: Annotated[str, typer.Option(metavar="NAME", help="fisher, gradient or angle.")] = "fisher",
    by: Annotated[str, typer.Option(metavar="WHAT", help="Score whole blocks, or every module.")] = "block",
    top: Annotated[int, typer.Option(min=1, help="Layers to choose.")] = 3,
    samples: Annotated[int, typer.Option(min=1, help="Examples that are measured on.")] = 128,
    overrides: Set = None,
    common: Common = Common(),  # noqa: B008
) -> None:
    """A score for every layer: where the task's gradients are, or how far training has turned the weights."""
    from regraft.models.layer_scores import By
    from regraft.phases.layers import UNITS, Metric, layer_scores

    found = layer_scores(
        recipe,
        metric=cast(Metric, one_of("--metric", metric, METRICS)),
        by=cast(By, one_of("--by", by, GROUPS)),
        top=top,
        samples=samples,
        overrides=overrides or [],
    )
    if common.json:
        show_json(found.to_json())
        return
    most = max((score.value or 0.0 for score in found.scores), default=0.0)
    rows = [
        (
            str(score.layer.depth),
            score.layer.name,
            f"{score.count:,}",
            "-" if score.value is None else f"{score.value:.4g}",
            "█" * round(20 * (score.value or 0.0) / most) if most else "",
        )
        for score in found.scores
    ]
    show_table(UNITS[found.metric], ("depth", "layer", "parameters", "score", ""), rows, right=("parameters", "score"))
    names = ", ".join(score.layer.name for score in found.chosen)
    show_lines(["", f"Highest: {names or 'none'}", f"techniques: [{found.technique()}]" if found.chosen else ""])


@command(app)
def models(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[FOLDER]...", help="Folders to search besides the usual places.")
    ] = None,
    commercial: Annotated[
        bool, typer.Option("--commercial", help="Block what is not licensed for commercial use.")
    ] = False,
    common: Common = Common(),  # noqa: B008
) -> None:
    """The pretrained checkpoints on this machine: licence, hash, size, and which of them can be adapted."""
    from regraft.models.inventory import inventory

    found = inventory(folders or [], commercial=commercial)
    if common.json:
        show_json([each.to_json() for each in found])
        return
    rows = [
        (
            each.name,
            each.architecture,
            "-" if each.parameters is None else f"{each.parameters:,}",
            f"{each.bytes / 1e6:,.1f} MB" if each.bytes else "-",
            each.licence or "not stated",
            {True: "yes", False: "no", None: "?"}[each.commercial],
            (each.sha256 or "-")[:12],
            "yes" if each.usable else "no",
        )
        for each in found
    ]
    columns = ("name", "architecture", "parameters", "size", "licence", "commercial", "sha256", "usable")
    show_table("", columns, rows, right=("parameters", "size"))
    show_lines(["", *(f"{each.name}: {each.why}" for each in found if each.why)])
