"""Commands that help to choose what is transferred, and how much of it trains: layers, models, compare, curve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from regraft.cli.app import app
from regraft.cli.chart import curve
from regraft.cli.options import Common, Out, Set, command
from regraft.cli.screen import screen, show_json, show_lines, show_table

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


@command(app)
def compare(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe to train, with a pretrained model.")],
    out: Out,
    scratch_rate: Annotated[
        float, typer.Option(min=0.0, help="Factor on the learning rate of training from scratch.")
    ] = 10.0,
    overrides: Set = None,
    common: Common = Common(),  # noqa: B008
) -> None:
    """Fine-tuning against training from scratch, at the same steps on the same rows: start, data, compute, time, quality."""
    from regraft.config.recipe import read_recipe
    from regraft.phases.compare import compare as compared

    with screen(common.quiet or common.json) as reporter:
        arms = compared(read_recipe(recipe, overrides or []), out, scratch_rate=scratch_rate, reporter=reporter)
    if common.json:
        show_json([arm.to_json() for arm in arms])
        return
    rows = [
        ("start", *(arm.start for arm in arms)),
        ("test score before training", *(f"{arm.start_score:.4f}" for arm in arms)),
        ("training rows", *(f"{arm.rows:,}" for arm in arms)),
        ("steps", *(f"{arm.steps:,}" for arm in arms)),
        ("parameters that train", *(f"{arm.trainable:,}" for arm in arms)),
        ("compute, GFLOPs", *(f"{arm.flops / 1e9:,.4g}" for arm in arms)),
        ("time, seconds", *(f"{arm.seconds:,.1f}" for arm in arms)),
        ("test score", *(f"{arm.score:.4f}" for arm in arms)),
        ("training score", *(f"{arm.train_score:.4f}" for arm in arms)),
        ("overfit gap", *(f"{arm.gap:+.4f}" for arm in arms)),
    ]
    show_table("", ("", *(arm.name for arm in arms)), rows, right=tuple(arm.name for arm in arms))
    show_lines(["", *(f"Report: {arm.run}/report.html" for arm in arms)])


@command(app, "curve")
def curve_command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe to train, with a pretrained model.")],
    out: Out,
    fractions: Annotated[
        str, typer.Option(metavar="LIST", help="Shares of the training rows.")
    ] = "0.05,0.1,0.25,0.5,1",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each.")] = 1,
    scratch_rate: Annotated[
        float, typer.Option(min=0.0, help="Factor on the learning rate of training from scratch.")
    ] = 10.0,
    overrides: Set = None,
    common: Common = Common(),  # noqa: B008
) -> None:
    """A learning curve over shares of the data: how many rows fine-tuning needs, and how many training from scratch."""
    from tempfile import TemporaryDirectory

    from regraft.config.recipe import read_recipe
    from regraft.phases.compare import learning_curve, require_empty, write_points
    from regraft.phases.report.curve import write_curve

    spec = read_recipe(recipe, overrides or [])
    require_empty(out)
    with screen(common.quiet or common.json) as reporter, TemporaryDirectory(prefix="regraft-curve-") as scratch:
        points = learning_curve(
            spec,
            Path(scratch),
            fractions=shares(fractions),
            seeds=seeds,
            scratch_rate=scratch_rate,
            reporter=reporter,
        )
    found = write_points(out, points)
    write_curve(out / "curve.html", points, title=str(spec.main_data().path))
    if common.json:
        show_json(found)
        return
    rows = [(each["strategy"], f"{each['rows']:,}", f"{each['score']:.4f}") for each in found["means"]]
    show_table("", ("strategy", "training rows", "test score"), rows, right=("training rows", "test score"))
    for strategy in dict.fromkeys(each["strategy"] for each in found["means"]):
        scores = [each["score"] for each in found["means"] if each["strategy"] == strategy]
        show_lines(["", strategy, *curve(scores, height=5, unit="shares")])
    show_lines(["", found["verdict"], f"Page: {out / 'curve.html'}"])


def shares(text: str) -> list[float]:
    """The numbers of a list such as "0.1,0.5,1"; a ConfigError where one is none."""
    from regraft.errors import ConfigError

    try:
        return [float(each) for each in text.split(",") if each.strip()]
    except ValueError:
        raise ConfigError(
            f"--fractions: must be numbers with commas between, such as 0.1,0.5,1, got {text!r}"
        ) from None
