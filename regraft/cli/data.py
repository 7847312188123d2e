"""Commands that look before anything is trained: audit, plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regraft.cli.app import app
from regraft.cli.options import (
    Budget,
    Common,
    Data,
    DataOptions,
    Model,
    Precision,
    Seed,
    Set,
    Strategy,
    command,
    with_precision,
)
from regraft.cli.screen import screen, show_json, show_lines, show_table

if TYPE_CHECKING:
    from regraft.phases.findings import AuditReport, Finding


@command(app)
def audit(
    data: Data,
    model: Model = None,
    fix: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write a cleaned copy to this new folder; DATA is never changed.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Write audit.json and findings.csv to this folder."),
    ] = None,
    seed: Seed = 0,
    options: DataOptions = DataOptions(),  # noqa: B008
    common: Common = Common(),  # noqa: B008
) -> None:
    """What is wrong with the data. Exit code 1 if errors were found."""
    from regraft.phases.checking import audit_data, fix_data, write_audit

    with screen(common.quiet or common.json) as reporter:
        dataset, report = audit_data(options.spec(data), model=model, seed=seed, reporter=reporter)
    if out is not None:
        write_audit(report, out)
    if common.json:
        show_json(report.to_json())
    else:
        show_findings(report)
    if fix is not None:
        sentences = fix_data(dataset, report, fix)
        if not common.json:
            show_lines(sentences)
    if report.errors:
        raise typer.Exit(1)


def show_findings(report: AuditReport) -> None:
    """A table of the findings and a line that counts them."""
    counts = {level: sum(f.severity == level for f in report.findings) for level in ("error", "warning", "info")}
    if report.findings:
        rows = [
            (f.severity, f.kind, _where(f), f"{len(f.rows):,}" if f.rows else "", f.message) for f in report.findings
        ]
        show_table("", ("severity", "kind", "where", "rows", "what and what to do"), rows, right=("rows",))
    named = [f"{count} {level}{'s' if count != 1 and level != 'info' else ''}" for level, count in counts.items()]
    print(f"\n{', '.join(named)}")


def _where(finding: Finding) -> str:
    return " ".join(part for part in (finding.split, finding.column) if part)


@command(app)
def plan(
    data: Data,
    model: Model = None,
    budget: Budget = None,
    strategy: Strategy = None,
    precision: Precision = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Where to write the recipe; default standard output."),
    ] = None,
    seed: Seed = 0,
    overrides: Set = None,
    options: DataOptions = DataOptions(),  # noqa: B008
    common: Common = Common(),  # noqa: B008
) -> None:
    """The recipe `adapt` would run, as counted work, with its reasons."""
    from regraft.config.recipe import ModelSpec, dump_recipe
    from regraft.errors import RunError
    from regraft.phases.opening import open_data
    from regraft.phases.path import job_recipe, plan_job

    if out is not None and out.exists():
        raise RunError(f"{out} exists; a recipe is only written to a new file, give another --out")
    if out is not None and not out.absolute().parent.is_dir():
        raise RunError(f"{out}: the folder {out.parent} does not exist; make it, or give another --out")
    spec = job_recipe(
        options.spec(data),
        ModelSpec(name=model),
        seed=seed,
        budget=budget,
        strategy=strategy,
        overrides=with_precision(overrides, precision),
    )
    with screen(common.quiet or common.json) as reporter:
        dataset = open_data(spec, reporter)
        spec = plan_job(spec, reporter=reporter, dataset=dataset)
    text = dump_recipe(spec)
    if out is not None:
        out.write_text(text, encoding="utf-8")
    if common.json:
        import yaml

        show_json(yaml.safe_load(text))
    elif out is None:
        print(text, end="")
    else:
        show_lines([f"Recipe: {out}", f"Run: regraft adapt {out} --out RUN"])
