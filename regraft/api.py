"""The Python interface: `rg.adapt`, `rg.audit`, `rg.plan`, `rg.train`, `rg.resume`, `rg.load`, and deltas on one base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from regraft.config.data import DataSpec
from regraft.config.recipe import ModelSpec, RecipeSpec, read_recipe
from regraft.errors import ConfigError
from regraft.phases.checking import audit_data
from regraft.phases.demo import resume_any
from regraft.phases.export import export_delta
from regraft.phases.findings import AuditReport
from regraft.phases.opening import open_data, require_new, require_recipe, with_bad_sample_policy
from regraft.phases.path import job_recipe, plan_job, run_job
from regraft.phases.predict import Prediction, Predictor, load
from regraft.phases.progress import Reporter, Silent
from regraft.phases.report.document import SECTIONS, section_html
from regraft.phases.report.summary import text_summary
from regraft.phases.rundir import LEDGER, METRICS, REPORT, RunDirectory
from regraft.phases.variants import Variants, load_variants

__all__ = [
    "FinishedRun", "Prediction", "Predictor", "RunReport", "Variants", "adapt", "audit", "export_delta", "load", "load_variants",
    "plan", "resume", "train",
]  # fmt: skip

Columns = str | Sequence[str] | None
Task = Literal["auto", "binary", "multiclass", "multilabel", "regression"]
Modality = Literal["auto", "text", "image", "table"]
BadSamples = Literal["fail", "skip"]


@dataclass(frozen=True)
class RunReport:
    """The report of a run, section by section. In a notebook it shows itself."""

    run: Path

    @property
    def sections(self) -> list[str]:
        """Names of the sections."""
        return list(SECTIONS)

    def section(self, name: str) -> str:
        """One section as HTML."""
        return section_html(self.run, name)

    @property
    def path(self) -> Path:
        """The whole report as one HTML file."""
        return self.run / REPORT

    def __str__(self) -> str:
        return "\n".join(text_summary(self.run))

    def _repr_html_(self) -> str:
        link = f'<p>The whole report: <a href="{escape(self.path.as_posix())}">{escape(self.path.as_posix())}</a></p>'
        return "".join(self.section(name) for name in ("summary", "tried", "height", "reliability")) + link


@dataclass(frozen=True)
class FinishedRun:
    """A run directory whose path has been walked to its end."""

    path: Path
    module: nn.Module | None = None  # the model's own module, where it came as one

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json."""
        return cast(dict[str, Any], RunDirectory(self.path).read_json(METRICS))

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """What each phase cost."""
        return cast(list[dict[str, Any]], RunDirectory(self.path).read_json(LEDGER))

    @property
    def report(self) -> RunReport:
        """The report; `_repr_html_` in a notebook."""
        return RunReport(self.path)

    @cached_property
    def predictor(self) -> Predictor:
        """The finished model, loaded when it is first asked for."""
        return load(self.path, module=self.module)

    def predict(self, data: Any) -> list[Prediction]:
        """A prediction for each row of texts, images, mappings, a table or a file; see `Predictor.predict`."""
        return self.predictor.predict(data)

    def __str__(self) -> str:
        return "\n".join([*text_summary(self.path), f"Report: {self.path / REPORT}"])


def adapt(
    data: str | Path | DataSpec,
    model: str | ModelSpec | nn.Module | None = None,
    *,
    out: str | Path,
    budget: str | float | None = None,
    strategy: str | None = None,
    seed: int = 0,
    text: Columns = None,
    label: Columns = None,
    image: str | None = None,
    features: Columns = None,
    group: str | None = None,
    time: str | None = None,
    task: Task = "auto",
    modality: Modality = "auto",
    encoding: str = "auto",
    delimiter: str = "auto",
    valid: float | None = None,
    test: float | None = None,
    limit: int | None = None,
    on_bad_sample: BadSamples | None = None,
    image_size: int | None = None,
    ignore_errors: bool = False,
    set: Sequence[str] = (),
    progress: bool | Reporter = True,
) -> FinishedRun:
    """The whole main job into a new run directory: audit, choose, adapt, calibrate, evaluate, report.

    Args:
        data: a file, folder, hub id or embedded sample; a `recipe.yaml`; or a `DataSpec`, which says what the options say.
        model: a hub id, local folder or `minilm`; a `ModelSpec`; a module of your own; None for tables.
        out: the run directory; it must be new or empty.
        budget: such as "3m", or seconds; default ten minutes.
        strategy: skips the race: probe, last-k, thaw, norm, lora, adapter or full.
        seed: of everything random.
        text: text column, or two for pairs.
        label: label column, or several 0/1 columns for multi-label.
        image: image column.
        features: columns of a table that are used.
        group: column whose groups stay on one side of a split.
        time: column to split by.
        task: binary, multiclass, multilabel or regression.
        modality: text, image or table.
        encoding: of text files.
        delimiter: of CSV files.
        valid: share cut off for validation where none is given.
        test: share cut off for the final test where none is given.
        limit: training rows used, at most.
        on_bad_sample: "fail" stops at the first bad row or image, "skip" leaves such rows out and counts them.
        image_size: side in pixels that a module of your own takes.
        ignore_errors: go on although the audit found errors.
        set: `path.to.field=value`, as with `--set`.
        progress: True shows it, False does not; or a `Reporter` of your own.
    """
    source = _data(
        data, text=text, label=label, image=image, features=features, group=group, time=time, task=task, modality=modality,
        encoding=encoding, delimiter=delimiter, valid=valid, test=test, limit=limit, on_bad_sample=on_bad_sample)  # fmt: skip
    plans = {"seed": seed, "budget": budget, "strategy": strategy}
    return _run(_recipe(source, model, image_size, [*set], plans, ignore_errors), Path(out), _reporter(progress), model)


def _recipe(
    source: DataSpec | Path,
    model: str | ModelSpec | nn.Module | None,
    image_size: int | None,
    overrides: list[str],
    plans: dict[str, Any],
    ignore_errors: bool,
) -> RecipeSpec:
    """The recipe that was asked for, before anything was measured; that of a file is changed by `overrides` alone."""
    overrides = [*overrides, *(["ignore_audit_errors=true"] if ignore_errors else [])]
    if not isinstance(source, Path):
        return job_recipe(source, _model(model, image_size=image_size), overrides=overrides, **plans)
    named = None if isinstance(model, nn.Module) else model
    given = [name for name, value in {"model": named, **plans}.items() if value not in (None, 0)]
    if given:
        raise ConfigError(f"{given[0]}: {source} is a recipe and says this already; change it there, or with `set`")
    return read_recipe(require_recipe(source), overrides)


def _run(spec: RecipeSpec, out: Path, reporter: Reporter, model: Any) -> FinishedRun:
    """Everything after the recipe; the module is `model` where it is one."""
    module = model if isinstance(model, nn.Module) else None
    require_new(out)
    try:
        dataset = open_data(spec, reporter, module=module)
        return FinishedRun(run_job(spec, out, reporter=reporter, module=module, dataset=dataset).path, module)
    finally:
        reporter.end()


def plan(
    data: str | Path | DataSpec,
    model: str | ModelSpec | nn.Module | None = None,
    *,
    budget: str | float | None = None,
    strategy: str | None = None,
    seed: int = 0,
    text: Columns = None,
    label: Columns = None,
    task: Task = "auto",
    on_bad_sample: BadSamples | None = None,
    set: Sequence[str] = (),
    progress: bool | Reporter = True,
) -> RecipeSpec:
    """The recipe `adapt` would run, measured and counted; `dump_recipe` of it is a recipe file. See `adapt` for the options."""
    reporter = _reporter(progress)
    module = model if isinstance(model, nn.Module) else None
    source = _data(data, text=text, label=label, task=task, on_bad_sample=on_bad_sample)
    if isinstance(source, Path):
        raise ConfigError(f"{source}: is a recipe already; give the data")
    named = _model(model, image_size=None)
    spec = job_recipe(source, named, seed=seed, budget=budget, strategy=strategy, overrides=list(set))
    try:
        dataset = open_data(spec, reporter, module=module)
        return plan_job(spec, reporter=reporter, module=module, dataset=dataset)
    finally:
        reporter.end()


def audit(
    data: str | Path | DataSpec,
    *,
    model: str | None = None,
    seed: int = 0,
    text: Columns = None,
    label: Columns = None,
    group: str | None = None,
    time: str | None = None,
    task: Task = "auto",
    on_bad_sample: BadSamples | None = None,
    progress: bool | Reporter = False,
) -> AuditReport:
    """Everything that is wrong or odd with the data; nothing is written. `model` judges labels by its features."""
    reporter = _reporter(progress)
    source = _data(data, text=text, label=label, group=group, time=time, task=task, on_bad_sample=on_bad_sample)
    if isinstance(source, Path):
        source = read_recipe(require_recipe(source)).main_data()
    try:
        return audit_data(source, model=model, seed=seed, reporter=reporter)[1]
    finally:
        reporter.end()


def train(
    recipe: str | Path | RecipeSpec,
    *,
    out: str | Path,
    on_bad_sample: BadSamples | None = None,
    progress: bool | Reporter = True,
) -> FinishedRun:
    """Train by a recipe with stages and techniques, into a new run directory."""
    from regraft.phases.train import train_job

    spec = recipe if isinstance(recipe, RecipeSpec) else read_recipe(require_recipe(Path(recipe)))
    spec = spec if on_bad_sample is None else with_bad_sample_policy(spec, on_bad_sample)
    reporter = _reporter(progress)
    try:
        train_job(spec, Path(out), reporter=reporter)
    finally:
        reporter.end()
    return FinishedRun(Path(out))


def resume(run: str | Path, *, ignore_errors: bool = False, progress: bool | Reporter = True) -> FinishedRun:
    """Go on with a run that was stopped or killed, to the result it would have had."""
    reporter = _reporter(progress)
    try:
        return FinishedRun(resume_any(Path(run), reporter=reporter, ignore_errors=ignore_errors).path)
    finally:
        reporter.end()


# ---- what people give


def _reporter(progress: bool | Reporter) -> Reporter:
    if isinstance(progress, bool):
        if not progress:
            return Silent()
        from regraft.cli.screen import Screen

        return Screen()
    return progress


def _data(data: str | Path | DataSpec, **options: Any) -> DataSpec | Path:
    """The data entry of a recipe; a path where `data` is a recipe file."""
    given: dict[str, Any] = {name: value for name, value in options.items() if value not in (None, "auto", ())}
    if isinstance(data, DataSpec):
        if given:
            raise ConfigError(f"{next(iter(given))}: give it in the DataSpec, which says this already")
        return data
    if str(data).endswith((".yaml", ".yml")):
        if given:
            raise ConfigError(f"{next(iter(given))}: {data} is a recipe and says this already; change it with `set`")
        return Path(data)
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return DataSpec(path=str(data), **given)


def _model(model: str | ModelSpec | nn.Module | None, *, image_size: int | None) -> ModelSpec:
    if isinstance(model, ModelSpec):
        return model
    return ModelSpec(name=model if isinstance(model, str) else None, image_size=image_size)
