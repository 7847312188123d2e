"""Fine-tuning against training from scratch: one network, the same rows, steps and batches, pretrained and fresh weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_model as load_tensors
from torch import nn

from regraft.config.recipe import MAIN, RecipeSpec, read_recipe
from regraft.core.modes import eval_mode
from regraft.core.values import Clock
from regraft.data.some import spread
from regraft.errors import ConfigError, RunError
from regraft.optim.optimizers import Optimizer
from regraft.phases.build import Assembled, assemble
from regraft.phases.metering import step_flops, units
from regraft.phases.progress import Reporter, Silent
from regraft.phases.resolve import resolved
from regraft.phases.rundir import LEDGER, METRICS, PHASES, RECIPE
from regraft.phases.train import train_job
from regraft.phases.training import Valid

FINE_TUNED, SCRATCH = "fine-tuned", "from scratch"
TRAIN_ROWS = 2_000  # of the training rows are scored for the gap, at most
RESULT = "compare.json"


def strategies(spec: RecipeSpec, *, scratch_rate: float = 10.0) -> dict[str, RecipeSpec]:
    """The recipe as it is, and the recipe that trains the same network from fresh weights for the same steps.

    From scratch every weight trains: techniques, which say what of a pretrained network moves, and the probe's head are left
    out, and the learning rate is `scratch_rate` times as large.

    Raises:
        ConfigError: the recipe has no stages, or adapts no pretrained model by name.
    """
    model = spec.main_model()
    if not spec.stages:
        raise ConfigError("compare: needs a recipe to train, with `stages:`; `regraft plan` writes recipes without")
    if model.name is None or model.weights == "fresh":
        raise ConfigError(
            "compare: needs a pretrained model under models.main.name, to be trained from scratch as well"
        )
    settled = resolved(spec).train  # the rate that fine-tuning is to have, where the recipe leaves it open too
    rate = cast(Optimizer, settled.optimizer)
    train = settled.replaced(optimizer=rate.replaced(lr=rate.lr * scratch_rate))
    models = spec.models | {MAIN: model.replaced(weights="fresh", head="last")}
    return {FINE_TUNED: spec, SCRATCH: spec.replaced(models=models, train=train, techniques=(), probe=None)}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What one strategy began with, used and reached."""

    name: str
    start: str  # where the weights are from
    start_score: float  # on the test rows, before training
    rows: int
    steps: int
    trainable: int
    flops: float  # of the training steps, counted
    seconds: float  # of the training
    metric: str
    score: float  # on the test rows
    low: float | None
    high: float | None
    train_score: float
    run: str

    @property
    def gap(self) -> float:
        """How much better the training rows are answered than the test rows: what was learned by heart."""
        return self.train_score - self.score

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the gap."""
        return asdict(self) | {"gap": self.gap}


def compare(spec: RecipeSpec, out: Path, *, scratch_rate: float = 10.0, reporter: Reporter | None = None) -> list[Arm]:
    """Both strategies at one budget, each a run of its own below `out`, and compare.json beside them.

    Raises:
        RunError: `out` holds something.
    """
    require_empty(out)
    arms = []
    for name, recipe in strategies(spec, scratch_rate=scratch_rate).items():
        run = train_job(recipe, out / name.replace(" ", "-"), reporter=reporter or Silent())
        arms.append(arm_of(name, run.path))
    (out / RESULT).write_text(json.dumps([arm.to_json() for arm in arms], indent=1), encoding="utf-8")
    return arms


def require_empty(out: Path) -> None:
    """A RunError where a folder for results holds something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out}: must be a new or empty folder, and holds other files; give another --out")


def arm_of(name: str, path: Path) -> Arm:
    """What a finished training run says of its strategy, with its score on the training rows measured now."""
    spec = read_recipe(path / RECIPE)
    made = assemble(spec)
    trainable = _trainable(made)
    flops = _flops(made, spec)
    model = made.recipe.model
    load_tensors(model, str(path / PHASES / "final.safetensors"))
    metrics = json.loads((path / METRICS).read_text(encoding="utf-8"))
    entry, primary = metrics["final"]["test"][metrics["primary"]], metrics["primary"]
    seconds = next(line["seconds"] for line in json.loads((path / LEDGER).read_text()) if line["phase"] == "train")
    scored = json.loads((path / PHASES / "evaluate.json").read_text(encoding="utf-8"))
    pretrained = spec.main_model().weights == "pretrained"
    return Arm(
        name=name,
        start=f"pretrained weights of {spec.main_model().name}" if pretrained else "fresh weights",
        start_score=scored["start"][MAIN]["score"],
        rows=len(made.main.materials.rows("train")),
        steps=sum(stage.steps for stage in spec.stages),
        trainable=trainable,
        flops=flops,
        seconds=seconds,
        metric=primary,
        score=scored["final"][MAIN]["score"],
        low=entry.get("low") if primary == "accuracy" else None,
        high=entry.get("high") if primary == "accuracy" else None,
        train_score=train_score(made, model),
        run=str(path),
    )


def train_score(made: Assembled, model: nn.Module) -> float:
    """The score of a model on at most 2,000 of its training rows, evenly spaced."""
    rows = spread(made.main.encoded("train"), TRAIN_ROWS)
    targets = made.main.targets("train")[rows.rows]
    return Valid(encoded=rows, targets=targets, task=made.task).measure(model)["score"]


def _trainable(made: Assembled) -> int:
    """Parameters that train in the last stage."""
    stage = made.recipe.stages[-1]
    stage.prepare()
    return sum(p.numel() for p in stage.trainable().values())


def _flops(made: Assembled, spec: RecipeSpec) -> float:
    """Counted FLOPs of all training steps: those of a step on four examples of each stage, times the units of its steps."""
    total = 0.0
    lengths = made.main.encoded("train").lengths
    for stage in made.recipe.stages:
        stage.prepare()
        with torch.random.fork_rng(devices=[]):
            batch = {key: value[:4] for key, value in next(iter(stage.source.batches(stage.model, 0))).items()}
        with eval_mode(stage.model):
            per_unit = step_flops(lambda s=stage, b=batch: s.objective(s.model, b, Clock(0, 1)).value, units(batch))
        stage.model.zero_grad(set_to_none=True)
        mean = float(lengths.mean()) if "input_ids" in batch else 1.0
        total += per_unit * mean * spec.train.batch_size * stage.steps
    return total


# ---- over fractions of the data


@dataclass(frozen=True, kw_only=True)
class Point:
    """One training: a strategy on a share of the training rows."""

    strategy: str
    fraction: float
    rows: int
    seed: int
    score: float
    course: tuple[tuple[float, float], ...]  # (step, validation score)


def learning_curve(
    spec: RecipeSpec,
    folder: Path,
    *,
    fractions: Sequence[float],
    seeds: int = 1,
    scratch_rate: float = 10.0,
    reporter: Reporter | None = None,
) -> list[Point]:
    """The test score of both strategies on nested shares of the training rows, all for the same number of steps.

    Args:
        spec: a recipe to train.
        folder: where the runs are made; the caller takes it away.
        fractions: of the training rows.
        seeds: trainings of each, with seeds counted up from the recipe's.
        scratch_rate: factor on the learning rate from scratch.
        reporter: told what is going on.
    """
    wrong = [each for each in fractions if not 0 < each <= 1]
    if wrong or not fractions:
        raise ConfigError(f"--fractions: must be shares above 0 and up to 1, got {wrong[0] if wrong else 'none'}")
    whole = len(assemble(spec).main.materials.rows("train"))
    points: list[Point] = []
    for name, recipe in strategies(spec, scratch_rate=scratch_rate).items():
        for fraction in sorted(set(fractions)):
            rows = max(1, round(fraction * whole))
            for seed in range(spec.seed, spec.seed + seeds):
                data = recipe.data | {MAIN: recipe.main_data().replaced(limit=rows)}
                run = train_job(
                    recipe.replaced(data=data, seed=seed),
                    folder / f"{name.replace(' ', '-')}-{rows}-{seed}",
                    reporter=reporter or Silent(),
                )
                points.append(_point(name, fraction, rows, seed, run.path))
    return points


def _point(strategy: str, fraction: float, rows: int, seed: int, path: Path) -> Point:
    evaluated, trained = (
        json.loads((path / PHASES / f"{each}.json").read_text(encoding="utf-8")) for each in ("evaluate", "train")
    )
    course = tuple((r["step"], r["score"]) for results in trained["validations"].values() for r in results)
    score = evaluated["final"][MAIN]["score"]
    return Point(strategy=strategy, fraction=fraction, rows=rows, seed=seed, score=score, course=course)


def means(points: Sequence[Point], strategy: str) -> list[tuple[int, float]]:
    """(rows, mean score over the seeds) of a strategy, fewest rows first."""
    found: dict[int, list[float]] = {}
    for point in points:
        if point.strategy == strategy:
            found.setdefault(point.rows, []).append(point.score)
    return [(rows, sum(scores) / len(scores)) for rows, scores in sorted(found.items())]


def rows_to_reach(points: Sequence[Point]) -> tuple[int | None, int, float]:
    """Rows with which fine-tuning reaches the best mean score from scratch (None: never), the rows that took, and the score."""
    rows, score = max(means(points, SCRATCH), key=lambda pair: (pair[1], -pair[0]))
    reached = next((count for count, mean in means(points, FINE_TUNED) if mean >= score), None)
    return reached, rows, score


def verdict(points: Sequence[Point]) -> str:
    """What the curve says of the claim that fine-tuning needs less data."""
    reached, rows, score = rows_to_reach(points)
    if reached is None:
        return f"fine-tuning does not reach the {score:.4f} that training from scratch reaches with {rows:,} rows"
    more = f"{rows / reached:.3g} times fewer" if reached < rows else "no fewer"
    return (
        f"fine-tuning reaches the {score:.4f} of training from scratch on {rows:,} rows with {reached:,}: {more} rows"
    )


def write_points(out: Path, points: Sequence[Point]) -> dict[str, Any]:
    """Write curve.json into a folder; what it says: means by rows, the verdict, and every training."""
    out.mkdir(parents=True, exist_ok=True)
    averaged = [
        {"strategy": name, "rows": rows, "score": score}
        for name in (FINE_TUNED, SCRATCH)
        for rows, score in means(points, name)
    ]
    found = {"means": averaged, "verdict": verdict(points), "points": [asdict(point) for point in points]}
    (out / "curve.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found
