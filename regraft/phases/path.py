"""The main job: audit, choose, adapt, calibrate, evaluate, report, as one resumable walk over a run directory."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from regraft.config.data import DataSpec
from regraft.config.parse import override
from regraft.config.recipe import MAIN, ModelSpec, RecipeSpec, dump_recipe, read_recipe, recipe_from_tree
from regraft.data.bad_policy import with_left_out
from regraft.data.dataset import Dataset
from regraft.data.read import load
from regraft.errors import BudgetError, ConfigError, DataError
from regraft.phases.adapt import adapt_phase
from regraft.phases.audit.run import audit, with_suspects, write_findings_csv
from regraft.phases.audit.suspects import FEWEST, held_out_probabilities
from regraft.phases.choose.fit import standardised
from regraft.phases.choose.measure import measure
from regraft.phases.choose.plan import parse_budget
from regraft.phases.choose.plan_phase import plan_phase
from regraft.phases.choose.probe_phase import features_kept, probe_phase
from regraft.phases.findings import AuditReport, audit_from_json
from regraft.phases.finish import calibrate_phase, evaluate_phase, report_phase
from regraft.phases.job import Job
from regraft.phases.progress import Reporter, Silent
from regraft.phases.ranks import require_one_process
from regraft.phases.rundir import AUDIT, FINDINGS, RECIPE, RunDirectory
from regraft.phases.working import working

DEFAULT_BUDGET_S = 600.0
MOST_JUDGED = 20_000  # rows whose labels the frozen features judge; of more, evenly spaced ones
MOST_CELLS = 50_000_000  # and of many classes fewer: probabilities that are held at once, 400 MB


def job_recipe(
    data: DataSpec,
    model: ModelSpec,
    *,
    seed: int = 0,
    budget: str | float | None = None,
    strategy: str | None = None,
    overrides: Sequence[str] = (),
) -> RecipeSpec:
    """The recipe of a main job before anything was measured.

    Args:
        data: what is adapted to.
        model: what is adapted.
        seed: of everything random.
        budget: such as "3m"; default ten minutes.
        strategy: skips the race.
        overrides: `path.to.field=value`.
    """
    import yaml

    seconds = DEFAULT_BUDGET_S if budget is None else parse_budget(budget)
    spec = RecipeSpec(seed=seed, data={"main": data}, models={"main": model}, budget_s=seconds, strategy=strategy)
    if not overrides:
        return spec
    tree = yaml.safe_load(dump_recipe(spec))
    for assignment in overrides:
        override(tree, assignment)
    return recipe_from_tree(tree, "--set")


def run_job(
    spec: RecipeSpec,
    out: Path,
    *,
    reporter: Reporter | None = None,
    module: nn.Module | None = None,
    dataset: Dataset | None = None,
) -> RunDirectory:
    """The whole main job into a new run directory; `dataset` is the data of the recipe where they were read already.

    Raises:
        RegraftError: bad input; what was asked for cannot be done. A run that stops later can be resumed.
        Interrupted: SIGTERM or SIGINT came; the run can be resumed.
    """
    require_one_process(spec, "the main job races its candidates in one process")
    dataset = dataset or load(spec.main_data())  # before the directory is made: bad data leaves nothing half-written
    _require_trainable(dataset)
    spec = with_left_out(spec, {MAIN: dataset})
    is_new = not out.exists()
    run = RunDirectory.create(out)
    with working(run, reporter or Silent(), fresh=True) as (told, stop):
        job = Job(run, spec, told, module, stop, dataset_=dataset)
        try:
            _ = job.base  # a model that cannot be used is found before anything is written
        except BaseException:
            _undo(out, is_new)
            raise
        job.write_manifest()
        job.use(spec)  # writes the recipe, which makes it a run that can be resumed: everything else is there by then
        try:
            return _walk(job)
        except (BudgetError, ConfigError):
            if job.run.done("probe") is None:  # nothing was measured yet, so there is nothing to go on with
                _undo(out, is_new)
            raise


def resume_job(path: Path, *, reporter: Reporter | None = None, module: nn.Module | None = None) -> RunDirectory:
    """Go on with a run that was stopped or killed, to the result it would have had.

    Raises:
        RunError: there is no run at `path`, or another process works on it.
        Interrupted: SIGTERM or SIGINT came; the run can be resumed.
    """
    run = RunDirectory.open(path)
    with working(run, reporter or Silent()) as (told, stop):
        job = Job(run, read_recipe(run.path / RECIPE), told, module, stop)
        job.compare_machine()
        return _walk(job)


def plan_job(
    spec: RecipeSpec,
    *,
    reporter: Reporter | None = None,
    module: nn.Module | None = None,
    dataset: Dataset | None = None,
) -> RecipeSpec:
    """The recipe with everything measured and counted: what `run_job` of it does is the same on any day."""
    import tempfile

    dataset = dataset or load(spec.main_data())
    spec = with_left_out(spec, {MAIN: dataset})
    with tempfile.TemporaryDirectory(prefix="regraft-plan-") as scratch:
        job = Job(RunDirectory.create(Path(scratch) / "plan"), spec, reporter or Silent(), module, dataset_=dataset)
        job.use(spec)
        measure(job)
        probe_phase(job)
        plan_phase(job)
        return job.spec


def _walk(job: Job) -> RunDirectory:
    audit_phase(job)
    measure(job)
    probe_phase(job)
    suspects_phase(job)
    plan_phase(job)
    adapt_phase(job)  # lets the candidates race first
    calibrate_phase(job)
    evaluate_phase(job)
    report_phase(job)
    return job.run


def _require_trainable(dataset: Dataset) -> None:
    if not dataset.schema.label:
        raise DataError(f"{dataset.path}: no label column was found; name it with --label")


def _undo(out: Path, fresh: bool) -> None:
    """Take back a run directory in which nothing has happened yet."""
    if fresh:
        shutil.rmtree(out, ignore_errors=True)
        return
    for entry in sorted(out.iterdir()):  # the folder was there, and empty
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


# ---- audit


def audit_phase(job: Job) -> dict[str, Any]:
    """Audit the data; errors stop the path unless the recipe says otherwise."""
    done = job.run.done("audit")
    if done is not None:
        return done
    with job.phase("audit", "what is wrong with the data") as meter:
        report = audit(job.dataset, suspects=job.dataset.schema.modality == "table", seed=job.spec.seed)
        _write_audit(job, report)
        for sentence in headline(report):
            job.reporter.say(sentence)
        errors = report.errors
        if errors and not job.spec.ignore_audit_errors:
            listed = "; ".join(finding.message for finding in errors[:3])
            raise DataError(
                f"{job.dataset.path}: the audit found {len(errors)} error{'s' * (len(errors) > 1)}: {listed}; see "
                f"{job.run.path / FINDINGS}, clean the data (`regraft audit DATA --fix OUT`), or go on with --ignore-errors"
            )
        counts = {level: sum(f.severity == level for f in report.findings) for level in ("error", "warning", "info")}
        meter.judge(not errors, f"{counts['error']} errors and {counts['warning']} warnings in the data.")
    kept = () if _has_suspects(job) else (AUDIT,)  # else that phase writes it again
    return job.run.finish("audit", {"counts": counts}, files=kept)


def suspects_phase(job: Job) -> None:
    """Add label errors to the audit, as the frozen features see them: each row judged by a fit without it."""
    schema = job.dataset.schema
    if not _has_suspects(job) or job.run.done("suspects") is not None:
        return
    if "suspects" in job.run.damaged:  # it cannot add to an audit that is damaged
        job.run.forget("audit")
        audit_phase(job)
    with job.phase("suspects", "labels that the frozen features speak against"):
        values, portion = job.found.pop("features", None) or features_kept(job)
        most = min(len(values), MOST_JUDGED, MOST_CELLS // len(schema.classes))
        judged = np.linspace(0, len(values) - 1, most).astype(np.int64)
        standard = standardised([values[judged]]).x.numpy()
        known = np.arange(len(values)) if portion.rows is None else portion.rows
        labels = job.materials.raw_targets("train")[known[judged]]
        held_out = held_out_probabilities(standard, labels, is_kernel=False)
        scores = np.zeros((len(judged), len(schema.classes)))
        scores[:, : held_out.shape[1]] = held_out
        rows = {"train": job.materials.rows("train")[known[judged]]}
        report = with_suspects(audit_from_json(job.run.read_json(AUDIT)), job.dataset, {"train": scores}, rows)
        _write_audit(job, report)
        if len(judged) < FEWEST * len(schema.classes):
            job.reporter.say(
                f"labels are judged where a class has {FEWEST} of the {len(judged):,} rows looked at, or more"
            )
        for finding in report.findings:
            if finding.kind == "suspected-label-error":
                job.reporter.say(f"{finding.severity}: {finding.message}")
    job.run.finish("suspects", {"judged": len(judged)}, files=[AUDIT])


def _has_suspects(job: Job) -> bool:
    """Can frozen features speak against labels? The columns of a table do so in the audit itself."""
    schema = job.dataset.schema
    return schema.modality != "table" and schema.task in ("binary", "multiclass")


def _write_audit(job: Job, report: AuditReport) -> None:
    job.run.write_json(AUDIT, _plain(report.to_json()))
    write_findings_csv(report, job.run.path / FINDINGS)


def headline(report: AuditReport) -> list[str]:
    """The findings worth a line on the screen: errors and warnings, the heaviest first."""
    worth = [f for f in report.findings if f.severity in ("error", "warning")]
    return [f"{f.severity}: {f.message}" for f in worth[:8]] + (
        [f"and {len(worth) - 8} more"] if len(worth) > 8 else []
    )


def _plain(value: Any) -> Any:
    """Values of numpy as JSON's own."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
