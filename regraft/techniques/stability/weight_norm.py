"""WeightNorm and SpectralNorm: constraints on weights in the place of constraints on activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from regraft.core import Hook, Loss, Recipe, Run, Stage, Technique, each_stage
from regraft.errors import ConfigError, Conflict
from regraft.layers.reparametrise import original_names, parametrised, power_iterations, spectral, weight_normed
from regraft.models.edit import edit_models

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class WeightNorm(Technique):
    """Trains the length and the direction of each output's weights apart: w = g v / |v|, in linear layers and convolutions.

    Salimans and Kingma, 2016, arXiv:1602.07868, eq. 2; through torch. The function is the same at first. Nothing depends on the
    batch, so it suits recurrent networks, small batches and reinforcement learning. The saved model has plain weights.

    Use it when batch normalisation is out of place and training from scratch is slow or sensitive to the rate. Not on a
    transformer, whose layer normalisation does that job, and not beside batch normalisation, which makes the length meaningless.

    Attributes:
        modules: patterns of module names; layers in those are changed. Default all.

    Example:
        ```yaml
        models: {main: {network: MLP}}
        techniques:
          - WeightNorm: {modules: "blocks.*"}
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"model", "trains"})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "inner"

    modules: str | tuple[str, ...] = "*"

    def apply(self, recipe: Recipe) -> Recipe:
        """Every model that is trained is changed; stages train lengths and directions where they trained weights."""
        changed = edit_models(recipe, lambda model, stage: weight_normed(model, self._layers(model, stage)))
        return each_stage(changed, _renamed)

    def _layers(self, model: nn.Module, stage: Stage[Any]) -> list[str]:
        return layers_in(model, self.modules, stage, asked_by="WeightNorm")


class SpectralNorm(Technique):
    """Divides weights by their largest singular value, so that a layer stretches no difference of inputs: for discriminators.

    Miyato et al., 2018, arXiv:1802.05957, eq. 8 and algorithm 1: the value is followed by power iteration, here once after each
    step and not in each forward pass, whose result then does not depend on what else was computed. The saved model has plain
    weights, the divided ones.

    Use it when a GAN's discriminator wins too soon or training is unstable: it bounds the slope of the discriminator. Not on
    the generator first, and not for classifiers, which it keeps from being sure.

    Attributes:
        modules: patterns of module names; linear layers and convolutions in those are changed.
        iterations: of the power method after each step.
        seed: decides the vectors it starts from.

    Example:
        ```yaml
        models: {main: {network: GenerativePair}}
        techniques:
          - GAN: {rounds: 1}
          - SpectralNorm: {modules: discriminator}
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"model", "trains", "hooks"})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "inner"

    modules: str | tuple[str, ...] = "discriminator"
    iterations: int = Field(default=1, ge=1)
    seed: int = 0

    def apply(self, recipe: Recipe) -> Recipe:
        """Every model that is trained is changed, and followed after each step."""
        changed = edit_models(recipe, lambda model, stage: spectral(model, self._layers(model, stage), seed=self.seed))
        return each_stage(
            changed, lambda stage: replace(_renamed(stage), hooks=(*stage.hooks, PowerIteration(self.iterations)))
        )

    def _layers(self, model: nn.Module, stage: Stage[Any]) -> list[str]:
        return layers_in(model, self.modules, stage, asked_by="SpectralNorm")


class PowerIteration(Hook):
    """Follows the largest singular values after each step."""

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def on_step(self, run: Run, loss: Loss) -> None:
        """A few iterations on the new weights."""
        power_iterations(run.stage.model, self.iterations)


def layers_in(model: nn.Module, patterns: str | tuple[str, ...], stage: Stage[Any], *, asked_by: str) -> list[str]:
    """Names of the linear layers and convolutions in modules whose names match a pattern, or are inside one that does.

    Raises:
        ConfigError: there is none.
        Conflict: another technique has made one of their weights a function of others.
    """
    given = (patterns,) if isinstance(patterns, str) else patterns
    named: Callable[[str], bool] = lambda name: any(_inside(name, pattern) for pattern in given)  # noqa: E731
    found = [name for name, module in model.named_modules() if isinstance(module, KINDS) and named(name)]
    if not found:
        tops = ", ".join(name for name, _ in model.named_children())
        raise ConfigError(
            f"{asked_by}.modules: no linear layer or convolution of the {type(model).__name__} in stage {stage.name!r} is in "
            f"{', '.join(given)}; its parts are {tops}"
        )
    taken = [name for name in found if name in parametrised(model)]
    if taken:
        raise Conflict(
            f"{asked_by}: the weight of {taken[0]} in stage {stage.name!r} is a function of others already; let one of "
            "WeightNorm and SpectralNorm have it, by `modules`"
        )
    return found


def _inside(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _renamed(stage: Stage[Any]) -> Stage[Any]:
    """The stage, training what has taken the place of weights that it named."""
    return stage if stage.trains is None else replace(stage, trains=original_names(stage.model, stage.trains))
