"""The command that searches: search."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regraft.cli.app import app
from regraft.cli.errors import Stopped
from regraft.cli.options import Common, Set, command
from regraft.cli.screen import screen, show_json, show_lines, show_table

if TYPE_CHECKING:
    from regraft.config.recipe import RecipeSpec

SHOWN = 10  # trials in the table


@command(app)
def search(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file with `stages:` and `search:`.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="A new folder for the search.")],
    trials: Annotated[int | None, typer.Option(min=1, help="Trials; default those of the recipe.")] = None,
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help="ASHA, Hyperband, TPE, GP, Random, Grid or PBT.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train trials at once.")] = 1,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="No trial is begun after this time, such as 90s, 5m or 1h.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the search that DIR holds.")] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Train on a Ray cluster: its address, or `local`. Needs regraft[cluster]."
        ),
    ] = None,
    overrides: Set = None,
    common: Common = Common(),  # noqa: B008
) -> None:
    """Search over any fields of a recipe: grid, random, Bayesian, Hyperband, ASHA or population based training."""
    from regraft.config.recipe import read_recipe
    from regraft.phases.choose.plan import parse_budget
    from regraft.phases.opening import require_recipe
    from regraft.search.run import search as run_search

    spec = _with_options(read_recipe(require_recipe(recipe), overrides or []), trials, method)
    seconds = None if budget is None else parse_budget(budget)
    with screen(common.quiet or common.json) as reporter, going_on(out):
        found = run_search(spec, out, workers=workers, budget=seconds, resume=resume, ray=ray, reporter=reporter)
    show_result(out, found, common)


def _with_options(spec: RecipeSpec, trials: int | None, method: str | None) -> RecipeSpec:
    """The recipe with what the command line says of its search."""
    from regraft.config.catalogue import names
    from regraft.search.run import section

    changes: dict[str, Any] = {}
    if trials is not None:
        changes["trials"] = trials
    if method is not None:
        folded = {name.casefold(): name for name in names("method")}
        wanted = folded.get(method.casefold(), method)
        if wanted != type(section(spec).method).__name__:  # else the recipe's own, with its options
            changes["method"] = wanted
    return spec.replaced(search=section(spec).replaced(**changes)) if changes else spec


def resume_here(out: Path, common: Common) -> None:
    """`regraft resume DIR` of a search."""
    from regraft.search.run import resume_search

    with screen(common.quiet or common.json) as reporter, going_on(out):
        reporter.say(
            "trials are trained by this process alone; `regraft search --resume --workers K` trains several at once"
        )
        found = resume_search(out, reporter=reporter)
    show_result(out, found, common)


@contextmanager
def going_on(out: Path) -> Generator[None]:
    """Around a search: where it is stopped, how to go on with it."""
    try:
        yield
    except KeyboardInterrupt as error:
        if not (out / "journal.jsonl").exists():
            raise Stopped(f"stopped; no trial was begun in {out}") from error
        raise Stopped(f"stopped; {out} holds what is done, go on with `regraft resume {out}`") from error


def show_result(out: Path, found: dict[str, Any], common: Common) -> None:
    """The best trials, what low fidelities said of high ones, and where everything lies; with --json all of it."""
    from regraft.search.page import shown

    if common.json:
        show_json(found)
        return
    metric, best = found["metric"], found["best"]
    sign = -1 if metric == "score" else 1
    judged = [trial for trial in found["trials"] if trial[metric] is not None]
    first = sorted(judged, key=lambda trial: (-trial["level"], sign * trial[metric], trial["trial"]))[:SHOWN]
    rows = [
        (
            str(trial["trial"]), f"{trial[metric]:.4f}", f"{trial['share']:.3g}", f"{trial['epochs']:.1f}",
            "; ".join(f"{name} {shown(value)}" for name, value in trial["values"].items()),
        )
        for trial in first
    ]  # fmt: skip
    columns = ("trial", metric, "share", "epochs", "values")
    show_table(f"{found['method']}: the best of {found['cost']['trials']} trials", columns, rows, right=columns[:4])
    lines = [
        f"rank correlation of results at {each['low']:.3g} of the training with those at {each['high']:.3g}: "
        f"{each['spearman']:.2f} ({each['trials']} trials)"
        for each in found["fidelities"]
    ]
    whole = "" if best["share"] == 1 else f" after {best['share']:.3g} of its training"
    lines += ["", f"Best: trial {best['trial']}, {metric} {best[metric]:.4f}{whole}"]
    if not found["over"]:
        lines.append(f"Not over: `regraft resume {out}` goes on.")
    lines += [
        f"Recipe: {out / 'best.yaml'} (regraft train {out / 'best.yaml'} --out RUN)",
        f"Page: {out / 'search.html'}",
    ]
    show_lines(lines)
