"""Training the few normalisation layers that matter most to the task, as their Fisher information says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from regraft.core.protocols import Hook
from regraft.core.run import Run
from regraft.core.stage import Recipe, Stage, each_stage
from regraft.core.technique import Technique
from regraft.errors import ConfigError
from regraft.models.anatomy import norm_layers
from regraft.models.fisher import mean_fisher
from regraft.models.freeze import KeepStatistics
from regraft.models.parts import chosen, parts_of


def layer_information(fisher: Mapping[str, Tensor], layers: Mapping[str, list[str]]) -> dict[str, float]:
    """The mean Fisher information a parameter of each layer, by layer name; layers that cannot train are left out."""
    means: dict[str, float] = {}
    for layer, names in layers.items():
        known = [fisher[name].double() for name in names if name in fisher]
        if known:
            means[layer] = float(sum(value.sum() for value in known)) / sum(value.numel() for value in known)
    return means


def best_layers(information: Mapping[str, float], count: int) -> list[str]:
    """The names of the `count` layers with most information, most first; of equal ones the first in the network."""
    return sorted(information, key=lambda name: -information[name])[:count]


class TellLayers(Hook):
    """Notes which layers were chosen, once, before the first step."""

    def __init__(self, chosen_layers: list[str], total: int, samples: int) -> None:
        self.chosen_layers, self.total, self.samples = chosen_layers, total, samples

    def on_start(self, run: Run) -> None:
        """Name them, most informative first."""
        if run.clock.step:
            return
        size = sum(p.numel() for p in run.stage.model.parameters() if p.requires_grad)
        whole = sum(p.numel() for p in run.stage.model.parameters())
        run.note(
            f"FisherNorms trains {len(self.chosen_layers)} of {self.total} normalisation layers and the head, {size:,} of "
            f"{whole:,} parameters, as at most {self.samples:,} examples say: {', '.join(self.chosen_layers)}"
        )


class FisherNorms(Technique):
    """Trains the normalisation layers with most Fisher information on the task, and the head; all else is frozen.

    ValizadehAslani and Liang 2024, arXiv:2403.20284: a small share of BERT's LayerNorms, chosen so, does about what all of them
    do. The information of a layer is the mean over its gains and shifts of the squared gradient of each example's own loss, on
    the first `samples` examples of the stage, before training, in eval mode. Running statistics stay as they are.

    Use it when many variants of one network are stored and NormOnly is still too large, or to learn which layers a task moves.
    Not from a head with fresh random weights, whose gradients say little: give the recipe a `probe:` first.

    Attributes:
        layers: how many normalisation layers train; by default as many as `share` says.
        share: of the normalisation layers, rounded up.
        samples: examples that decide.

    Example:
        ```yaml
        probe: {}
        techniques:
          - FisherNorms: {layers: 4, samples: 256}
        ```
    """

    provides: ClassVar[frozenset[str]] = frozenset({"trains"})
    wraps: ClassVar[frozenset[str]] = frozenset({"hooks"})

    layers: int | None = Field(default=None, ge=1)
    share: float = Field(default=0.25, gt=0, le=1)
    samples: int = Field(default=128, ge=1)

    @model_validator(mode="after")
    def _one_of_the_two(self) -> FisherNorms:
        if self.layers is not None and "share" in self.model_fields_set and self.share != 0.25:
            raise ConfigError(f"FisherNorms: give `layers` or `share`, not both, got {self.layers} and {self.share:g}")
        return self

    def apply(self, recipe: Recipe) -> Recipe:
        """Every stage trains the layers that its own examples choose."""
        return each_stage(recipe, self._chosen)

    def _chosen(self, stage: Stage[Any]) -> Stage[Any]:
        layers = norm_layers(stage.model)
        names = [name for parameters in layers.values() for name in parameters]
        wanted = chosen(stage, names, asked_by="FisherNorms", what="normalisation layers")
        information = layer_information(mean_fisher(stage, wanted, samples=self.samples), layers)
        count = math.ceil(self.share * len(layers)) if self.layers is None else self.layers
        if count > len(information):
            raise ConfigError(
                f"FisherNorms.layers: must be at most {len(information)} (the normalisation layers that may train of the "
                f"{type(stage.model).__name__} in stage {stage.name!r}), got {count}"
            )
        best = best_layers(information, count)
        head = chosen(stage, parts_of(stage.model).head, asked_by="FisherNorms", what="head")
        trains = wanted & {name for layer in best for name in layers[layer]}
        return replace(
            stage,
            trains=trains | head,
            hooks=(*stage.hooks, KeepStatistics(), TellLayers(best, len(layers), self.samples)),
        )
