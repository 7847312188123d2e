"""`regraft landscape`: the loss around the weights of a finished run, or of a recipe trained for it, and how sharp it is."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model as load_tensors
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from regraft.config.recipe import read_recipe
from regraft.core import Clock, fit
from regraft.core.modes import eval_mode
from regraft.data.read import load as load_data
from regraft.errors import ConfigError, DataError
from regraft.layers.bound import Bound
from regraft.losses.criterion import objective_of, question_of
from regraft.optim.landscape import (
    LossOf,
    across,
    epsilon_sharpness,
    filter_normalised,
    largest_eigenvalue,
    line,
    noise_rise,
    plane,
)
from regraft.phases.build import Assembled, assemble
from regraft.phases.judges import judge_for
from regraft.phases.materials import Materials
from regraft.phases.predict import load
from regraft.phases.resolve import resolved
from regraft.phases.rundir import PHASES, RECIPE, RunDirectory
from regraft.phases.train import FINAL, Made, hooks_of, is_training_run
from regraft.phases.training import Valid

FORMAT, FILE = "regraft.landscape/1", "landscape.json"
RHO, SHARE, DRAWS, LANCZOS = 0.05, 0.1, 10, 20  # of the measures of sharpness


@dataclass(frozen=True, kw_only=True)
class Sharpness:
    """One number for how sharp a minimum is."""

    method: str
    value: float
    what: str


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """The loss around some weights."""

    of: str
    split: str
    rows: int
    weights: str  # which ones are moved
    loss: float  # at the weights themselves
    at: tuple[float, ...]  # multiples of the directions
    line: tuple[float, ...]
    plane: tuple[tuple[float, ...], ...] | None
    sharpness: tuple[Sharpness, ...]

    @property
    def lowest_at(self) -> float:
        """The multiple of the direction at which the line is lowest; 0 is the trained point."""
        return self.at[min(range(len(self.at)), key=self.line.__getitem__)]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with the name of the format."""
        return {"format": FORMAT, **asdict(self), "lowest_at": self.lowest_at}


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What a landscape is of: a loss over the weights that are moved."""

    loss: LossOf
    weights: Mapping[str, Tensor]
    model: nn.Module
    rows: int
    which: str

    @contextmanager
    def still(self) -> Generator[None]:
        """Dropout and running statistics stand still, and attention uses the kernel that has a second derivative."""
        with eval_mode(self.model), sdpa_kernel(SDPBackend.MATH):
            yield


def landscape(
    path: Path,
    *,
    grid: int = 21,
    dimensions: int = 1,
    span: float = 1.0,
    rows: int = 256,
    split: str = "train",
    seed: int = 0,
    overrides: tuple[str, ...] = (),
) -> Landscape:
    """The loss along random filter-normalised directions through the trained weights, and three measures of sharpness.

    Args:
        path: a run directory, or a recipe file, which is trained first.
        grid: points along a direction; an odd number, so that the trained point is one of them.
        dimensions: 2 draws a plane as well, for `grid` squared passes.
        span: largest multiple of a direction, which is as long as the weights, filter by filter.
        rows: of the split, the first of a random order.
        split: train or valid.
        seed: of the directions, the noise and the order of rows.
        overrides: `path.to.field=value`, for a recipe file.

    Raises:
        ConfigError: an even grid, or a recipe without a loss on labels.
        DataError: the split is not there.
    """
    if grid < 3 or grid % 2 == 0:
        raise ConfigError(f"--grid: must be an odd number of 3 or more, so that the trained point is in it, got {grid}")
    ground = _ground(path, rows, split, seed, overrides)
    draw = torch.Generator().manual_seed(seed)
    loss, weights = ground.loss, ground.weights
    at = tuple(float(a) for a in np.linspace(-span, span, grid))
    with ground.still():
        one = filter_normalised(weights, draw)
        two = across(filter_normalised(weights, draw), one)
        along = line(loss, weights, one, at)
        over = plane(loss, weights, (one, two), at) if dimensions == 2 else None
        measures = measures_of(loss, weights, draw)
    return Landscape(
        of=str(path),
        split=split,
        rows=ground.rows,
        weights=ground.which,
        loss=along[grid // 2],
        at=at,
        line=tuple(along),
        plane=None if over is None else tuple(tuple(row) for row in over),
        sharpness=measures,
    )


def measures_of(loss: LossOf, weights: Mapping[str, Tensor], draw: torch.Generator) -> tuple[Sharpness, ...]:
    """The three measures of sharpness at the weights, each with its method named."""
    return (
        Sharpness(
            method="epsilon-sharpness",
            value=epsilon_sharpness(loss, weights, RHO),
            what=f"rise of the loss at the worst point within {RHO:g}, by one step of ascent (Foret et al., 2021)",
        ),
        Sharpness(
            method="largest Hessian eigenvalue",
            value=largest_eigenvalue(loss, weights, steps=LANCZOS, generator=draw),
            what=f"curvature along the steepest direction, by {LANCZOS} steps of Lanczos' method",
        ),
        Sharpness(
            method="mean rise under noise",
            value=noise_rise(loss, weights, share=SHARE, draws=DRAWS, generator=draw),
            what=f"mean rise of the loss under filter-normalised noise of {SHARE:.0%} of each filter, over {DRAWS} draws",
        ),
    )


def write_landscape(found: Landscape, run: Path) -> Path:
    """Path of RUN/landscape.json; the report shows it once it is written anew."""
    RunDirectory.open(run).write_text(FILE, json.dumps(found.to_json(), indent=1, allow_nan=True))
    return run / FILE


# ---- what the landscape is of


def _ground(path: Path, rows: int, split: str, seed: int, overrides: tuple[str, ...]) -> Ground:
    if path.is_dir() and not is_training_run(path):
        return _of_job(path, rows, split, seed)
    if path.is_dir():
        assembled = assemble(read_recipe(path / RECIPE))
        load_tensors(assembled.recipe.model, str(path / PHASES / FINAL))
    else:
        made = Made(resolved(read_recipe(path, overrides)), None)
        assembled = made.assembled
        fit(assembled.recipe, seed=made.spec.seed, hooks=hooks_of(made, ()))
    return _of_training(assembled, rows, split, seed)


def _of_training(assembled: Assembled, rows: int, split: str, seed: int) -> Ground:
    """The weights that the last stage trained, under the loss of the recipe."""
    main, spec = assembled.main, assembled.spec
    _require(split, main.materials.dataset.splits, main.has(split))
    if not isinstance(judge_for(spec.techniques, main, split), Valid):
        raise ConfigError(
            "a landscape is of a loss on labels, and this recipe has none (GAN, GRPO and MAML make their own); take a "
            "supervised one"
        )
    encoded, targets = main.encoded(split), torch.as_tensor(main.targets(split))
    objective = objective_of(spec.train.loss, question_of(main.task, targets, main.num_outputs))
    model = assembled.recipe.model
    last = assembled.recipe.stages[-1]
    names = {
        id(p)
        for n, p in last.model.named_parameters()
        if (p.requires_grad if last.trains is None else n in last.trains)
    }
    trained = {name for name, p in model.named_parameters() if id(p) in names}
    return over(model, objective, encoded, targets, trained, rows, seed, "those that the last stage trained")


def _of_job(path: Path, rows: int, split: str, seed: int) -> Ground:
    """All weights of a finished main job, under the usual loss of its task."""
    predictor, data = load(path), read_recipe(path / RECIPE).main_data()
    limits = {"train": data.limit, "valid": data.limit_valid}
    materials = Materials(load_data(data), predictor.preprocessor, limits=limits, seed=data.seed)
    _require(split, materials.dataset.splits, split in materials.dataset.splits)
    targets = torch.as_tensor(materials.raw_targets(split))
    objective = objective_of(None, question_of(materials.task, targets, len(predictor.schema.classes)))
    every = {name for name, p in predictor.model.named_parameters() if p.is_floating_point()}
    return over(predictor.model, objective, materials.encoded(split), targets, every, rows, seed, "all of the model")


def _require(split: str, splits: Mapping[str, Any], labelled: bool) -> None:
    if split not in ("train", "valid"):
        raise ConfigError(f"--split: must be train or valid, got {split!r}; the test rows are for the final score only")
    if not labelled:
        raise DataError(f"--split: the data have no labelled {split!r} rows, only {', '.join(sorted(splits))}")


def over(
    model: nn.Module,
    objective: Any,
    encoded: Any,
    targets: Tensor,
    names: set[str],
    rows: int,
    seed: int,
    which: str,
) -> Ground:
    """The loss of a model over some examples as a function of the parameters called `names`; the others stay."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(encoded))[:rows])
    batch = {**encoded.collate(chosen), "y": targets[torch.from_numpy(chosen)], "id": torch.from_numpy(chosen)}
    bound = Bound(objective, model)
    weights = {f"model.{name}": p.detach() for name, p in model.named_parameters() if name in names}

    def loss(moved: Mapping[str, Tensor]) -> Tensor:
        return functional_call(bound, dict(moved), (batch, Clock(0, 1))).value

    return Ground(loss=loss, weights=weights, model=model, rows=len(chosen), which=which)
