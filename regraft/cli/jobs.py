"""Commands that train: demo, adapt, train, resume."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regraft.cli.app import app
from regraft.cli.errors import resumable
from regraft.cli.options import (
    Budget,
    Common,
    DataOptions,
    Model,
    OnBad,
    Out,
    Precision,
    Run,
    Seed,
    Set,
    Strategy,
    command,
    with_precision,
)
from regraft.cli.screen import screen, show_json, show_lines

if TYPE_CHECKING:
    from regraft.config.recipe import RecipeSpec

RECIPE_SUFFIXES = (".yaml", ".yml")


@command(app)
def demo(
    sample: Annotated[
        str, typer.Option(metavar="NAME", help="stdlib-docstrings, digits, wine or diabetes.")
    ] = "stdlib-docstrings",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="RUN", help="A new folder; default runs/demo-SAMPLE.")
    ] = None,
    budget: Budget = None,
    common: Common = Common(),  # noqa: B008
) -> None:
    """The whole job on an embedded sample: no network, no account."""
    from regraft.phases.demo import fresh_folder, run_demo

    run = fresh_folder(sample) if out is None else out
    with screen(common.quiet or common.json) as reporter, resumable(run):
        run_demo(sample, run, budget=budget, reporter=reporter)
    show_end(run, common)


@command(app)
def adapt(
    data: Annotated[
        str, typer.Argument(metavar="DATA|RECIPE", help="The data, or a recipe.yaml that `regraft plan` wrote.")
    ],
    out: Out,
    model: Model = None,
    budget: Budget = None,
    strategy: Strategy = None,
    precision: Precision = None,
    seed: Seed = 0,
    ignore_errors: Annotated[
        bool, typer.Option("--ignore-errors", help="Go on although the audit found errors.")
    ] = False,
    overrides: Set = None,
    options: DataOptions = DataOptions(),  # noqa: B008
    common: Common = Common(),  # noqa: B008
) -> None:
    """The whole path: audit, choose, adapt, calibrate, evaluate, report."""
    from regraft.phases.opening import open_data, require_new
    from regraft.phases.path import run_job

    require_new(out)
    plans: dict[str, Any] = {"model": model, "budget": budget, "strategy": strategy, "precision": precision}
    if data.endswith(RECIPE_SUFFIXES):
        spec = _from_recipe(data, overrides or [], given={**plans, "seed": seed or None, **options.given()})
    else:
        spec = _from_options(
            data,
            with_precision(overrides, precision),
            model=model,
            budget=budget,
            strategy=strategy,
            seed=seed,
            options=options,
        )
    if ignore_errors:
        spec = spec.replaced(ignore_audit_errors=True)
    with screen(common.quiet or common.json) as reporter, resumable(out):
        dataset = open_data(spec, reporter)
        run_job(spec, out, reporter=reporter, dataset=dataset)
    show_end(out, common)


def _from_options(
    data: str,
    overrides: list[str],
    *,
    model: str | None,
    budget: str | None,
    strategy: str | None,
    seed: int,
    options: DataOptions,
) -> RecipeSpec:
    from regraft.config.recipe import ModelSpec
    from regraft.phases.path import job_recipe

    return job_recipe(
        options.spec(data), ModelSpec(name=model), seed=seed, budget=budget, strategy=strategy, overrides=overrides
    )


def _from_recipe(file: str, overrides: list[str], *, given: dict[str, Any]) -> RecipeSpec:
    """The recipe of a file; what it says already is changed with --set, so that a plan is not undone by accident."""
    from regraft.config.recipe import read_recipe
    from regraft.errors import ConfigError
    from regraft.phases.opening import require_recipe

    said = [name for name, value in given.items() if value is not None]
    if said:
        option = said[0].replace("_", "-")
        raise ConfigError(
            f"--{option}: {file} is a recipe and says this already; change it there, or with --set such as --set seed=7"
        )
    spec = read_recipe(require_recipe(Path(file)), overrides)
    if spec.stages:
        raise ConfigError(f"{file}: has `stages:`, so it is a recipe for `regraft train {file} --out RUN`")
    return spec


@command(app)
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file with `stages:` and `techniques:`.")],
    out: Out,
    overrides: Set = None,
    on_bad_sample: OnBad = None,
    folds: Annotated[
        int | None,
        typer.Option(
            metavar="K", help="Cross-validate: K trainings into K folders; the cost is said first. Default one holdout."
        ),
    ] = None,
    common: Common = Common(),  # noqa: B008
) -> None:
    """Train by a recipe: any technique of the catalogue."""
    from regraft.config.recipe import read_recipe
    from regraft.phases.opening import require_recipe
    from regraft.phases.train import train_job

    spec = read_recipe(require_recipe(recipe), overrides or [])
    if on_bad_sample is not None:
        from regraft.phases.opening import with_bad_sample_policy

        spec = with_bad_sample_policy(spec, on_bad_sample)
    if folds is not None:
        from regraft.phases.folds import train_folds

        with screen(common.quiet or common.json) as reporter:
            found = train_folds(spec, out, folds=folds, reporter=reporter)
        if common.json:
            show_json(found)
            return
        show_lines(
            [found["cost"], f"score: {found['mean']:.4f} ± {found['deviation']:.4f} over {folds} folds", f"Runs: {out}"]
        )
        return
    with screen(common.quiet or common.json) as reporter, resumable(out):
        train_job(spec, out, reporter=reporter)
    show_end(out, common)


@command(app)
def resume(
    run: Run,
    ignore_errors: Annotated[
        bool, typer.Option("--ignore-errors", help="Go on although the audit found errors.")
    ] = False,
    common: Common = Common(),  # noqa: B008
) -> None:
    """Go on with a run that was stopped or killed, to the result it would have had."""
    from regraft.phases.demo import resume_any

    if (run / "journal.jsonl").is_file():
        from regraft.cli.search import resume_here

        resume_here(run, common)
        return
    with screen(common.quiet or common.json) as reporter, resumable(run):
        resume_any(run, reporter=reporter, ignore_errors=ignore_errors)
    show_end(run, common)


def show_end(run: Path, common: Common) -> None:
    """What came out: five lines, where the report is and how to predict; with --json the metrics."""
    from regraft.phases.report.read import read_run
    from regraft.phases.report.summary import text_summary

    if common.json:
        metrics = read_run(run).metrics
        kept = {key: metrics[key] for key in ("task", "primary", "winner", "final", "probe") if key in metrics}
        show_json({"run": str(run), "report": str(run / "report.html"), **kept})
        return
    if (run / "metrics.json").is_file():
        show_lines(["", *text_summary(run)])
    print(f"\nReport: {run / 'report.html'}")
    if (run / "model" / "model.json").is_file():
        print(f"Predict: regraft predict {run} FILE")
