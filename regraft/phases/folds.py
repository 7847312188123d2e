"""Cross-validation of a recipe: one training for each fold, and the spread of what they score.

A network is usually judged on one holdout, which is what `regraft train` does by default: folds cost as many trainings as there
are of them, so the cost is said first. They pay where rows are few and a single holdout says little.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

from regraft.config.recipe import MAIN, RecipeSpec
from regraft.errors import ConfigError, RunError
from regraft.phases.progress import Reporter, Silent
from regraft.phases.rundir import PHASES
from regraft.phases.train import train_job

FILE = "folds.json"


def cost_of(spec: RecipeSpec, folds: int) -> str:
    """What cross-validation will cost, as a sentence."""
    steps = sum(stage.steps for stage in spec.stages)
    return (
        f"cross-validation: {folds} trainings of {steps:,} steps, {folds * steps:,} in all, {folds} times the work of the one "
        "holdout that is the default"
    )


def train_folds(spec: RecipeSpec, out: Path, *, folds: int, reporter: Reporter | None = None) -> dict[str, Any]:
    """Train a recipe once for each fold, into `out/fold-0` and so on; `{mean, deviation, scores, ...}`, also in folds.json.

    Fold k of the training rows is what fold-k is validated on; the test rows stay what they are, and choose nothing.

    Args:
        spec: a recipe to train.
        out: a new or empty folder.
        folds: how many, at least 2.
        reporter: told the cost before anything trains.

    Raises:
        ConfigError: fewer than 2 folds.
        RunError: `out` holds something.
        DataError: the data has a validation split of its own, or too few rows.
    """
    if folds < 2:
        raise ConfigError(f"--folds: must be at least 2, got {folds}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out}: must be a new or empty folder, and holds other files; give another --out")
    told = reporter or Silent()
    told.say(cost_of(spec, folds))
    scores: list[float] = []
    began = time.perf_counter()
    for fold in range(folds):
        data = spec.main_data().replaced(folds=folds, fold=fold)
        run = train_job(spec.replaced(data={**spec.data, MAIN: data}), out / f"fold-{fold}", reporter=told)
        scores.append(_score(json.loads((run.path / PHASES / "train.json").read_text(encoding="utf-8")), spec))
        if fold == 0:
            seconds = time.perf_counter() - began
            told.say(
                f"the first fold took {seconds:.0f} s, so the others will take about {(folds - 1) * seconds:.0f} s"
            )
    found = {
        "folds": folds,
        "scores": scores,
        "mean": statistics.fmean(scores),
        "deviation": statistics.stdev(scores),
        "cost": cost_of(spec, folds),
    }
    (out / FILE).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    told.say(f"score on validation rows over {folds} folds: {found['mean']:.4f} ± {found['deviation']:.4f}")
    return found


def _score(notes: dict[str, Any], spec: RecipeSpec) -> float:
    """The validation score of the weights that the last stage ended with: its last, or with `patience` its best."""
    results = notes["validations"].get(spec.stages[-1].name)
    if not results:
        raise ConfigError("--folds: nobody can judge this model on validation rows, so folds cannot be compared")
    if spec.validate_.patience is None:
        return float(results[-1]["score"])
    return float(max(results, key=lambda result: (result["score"], -result["loss"]))["score"])
