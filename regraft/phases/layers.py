"""Scores of the layers of a recipe's model, or of a finished run's: which of them a task wants to move."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from safetensors.torch import load_model as load_tensors
from torch import Tensor, nn

from regraft.config.recipe import RecipeSpec, read_recipe
from regraft.core import Stage
from regraft.errors import ConfigError, RunError
from regraft.layers.low_rank import low_rank_layers, merge
from regraft.models.layer_scores import By, Score, angle_scores, best, fisher_scores, gradient_scores, layers_of
from regraft.phases.rundir import PHASES, RECIPE, RunDirectory

Metric = Literal["fisher", "gradient", "angle"]
UNITS = {
    "fisher": "mean squared gradient of an example's loss",
    "gradient": "norm of the gradient over norm of the weights",
    "angle": "degrees between the weights before and after training",
}


@dataclass(frozen=True, kw_only=True)
class LayerScores:
    """What `regraft layers` prints."""

    metric: Metric
    scores: list[Score]
    chosen: list[Score]  # the best ones, best first

    def to_json(self) -> dict[str, Any]:
        """Plain values, layer by layer in depth order."""
        rows = [
            {"layer": s.layer.name, "depth": s.layer.depth, "parameters": s.count, "score": s.value}
            for s in self.scores
        ]
        return {
            "metric": self.metric,
            "unit": UNITS[self.metric],
            "layers": rows,
            "chosen": [score.layer.name for score in self.chosen],
            "technique": self.technique(),
        }

    def technique(self) -> dict[str, Any]:
        """The chosen layers as an entry of `techniques:`."""
        return {"TrainOnly": {"parameters": [pattern for s in self.chosen for pattern in _patterns(s)]}}


def _patterns(score: Score) -> list[str]:
    """Patterns that match a layer's parameters and no others: the name of its module, or its parameters' own names."""
    prefix = f"{score.layer.name}."
    inside = all(name.startswith(prefix) for name in score.layer.parameters)
    return [f"{prefix}*"] if inside else list(score.layer.parameters)


def layer_scores(path: Path, *, metric: Metric, by: By, top: int, samples: int, overrides: list[str]) -> LayerScores:
    """A score for every layer, and the best `top` of them other than the head, which always trains.

    Args:
        path: a recipe file with `stages:`; for the angle a run directory.
        metric: what is measured.
        by: whole blocks, or every module with parameters.
        top: layers to choose.
        samples: examples that Fisher information and gradients are measured on.
        overrides: of the recipe.

    Raises:
        ConfigError: the recipe has no stages, or a metric does not fit what was given.
        RunError: the run is not finished.
    """
    if metric == "angle":
        scores = _angles(path, by)
    else:
        if path.is_dir():
            raise ConfigError(
                f"--metric {metric}: is measured before training, so give a recipe file, got the run {path}"
            )
        stage = _plain_stage(read_recipe(path, overrides))
        measured = fisher_scores if metric == "fisher" else gradient_scores
        scores = measured(stage, layers_of(stage.model, by=by), samples=samples)
    candidates = [score for score in scores if not _is_head(score, scores)]
    return LayerScores(metric=metric, scores=scores, chosen=best(candidates, top))


def _is_head(score: Score, scores: list[Score]) -> bool:
    return score.layer.depth == max(each.layer.depth for each in scores)


def _plain_stage(spec: RecipeSpec) -> Stage[Any]:
    """The first stage of a recipe without its techniques: what decides what trains must not depend on what trains."""
    from regraft.phases.build import assemble

    stage = assemble(spec.replaced(techniques=())).recipe.stages[0]
    stage.model.requires_grad_(True)
    return replace(stage, trains=None)


# ---- a finished run


def _angles(path: Path, by: By) -> list[Score]:
    if not path.is_dir():
        raise ConfigError(f"--metric angle: compares the weights before and after training, so give a run, got {path}")
    before, model = weights_before_and_model_after(path)
    return angle_scores(before, dict(model.named_parameters()), layers_of(model, by=by))


def weights_before_and_model_after(path: Path) -> tuple[dict[str, Tensor], nn.Module]:
    """Copies of the weights a run began with, by name, and its trained model; what LoRA learned is added to the weights.

    Raises:
        RunError: it has not been trained to its end.
    """
    from regraft.phases.train import is_training_run

    run = RunDirectory.open(path)
    training = is_training_run(path)
    if not (path / PHASES / ("train.json" if training else "adapt.json")).is_file():
        raise RunError(f"{path}: has not been trained to its end; continue it with `regraft resume {path}`")
    spec = read_recipe(path / RECIPE)
    if training:
        from regraft.phases.build import assemble

        model = assemble(spec).recipe.model
        before = copied(_plain(model))
        load_tensors(model, str(path / PHASES / "final.safetensors"))
        return before, _plain(model)
    return _adapted(run, spec)


def _adapted(run: RunDirectory, spec: RecipeSpec) -> tuple[dict[str, Tensor], nn.Module]:
    """Of a run of the whole path: the probe's model before, the finished model after."""
    from regraft.phases.adapt import final_model
    from regraft.phases.choose.probe_phase import load_heads, with_probe
    from regraft.phases.demo import module_for
    from regraft.phases.job import Job
    from regraft.phases.progress import Silent

    job = Job(run, spec, module=module_for(spec, Silent()))
    before = with_probe(job, load_heads(job)["chosen"])
    return copied(before), _plain(cast(nn.Module, final_model(job)))


def _plain(model: nn.Module) -> nn.Module:
    """The model under the names that its weights have without LoRA."""
    return merge(model) if low_rank_layers(model) else model


def copied(model: nn.Module) -> dict[str, Tensor]:
    """The parameters as they are now, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
