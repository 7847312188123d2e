"""Training the normalisation layers alone: some thousand gains and shifts steer the whole frozen network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from regraft.core.protocols import Hook
from regraft.core.run import Run
from regraft.core.stage import Recipe, Stage, each_stage
from regraft.core.technique import Technique
from regraft.models.parts import chosen, parts_of


def is_norm(module: nn.Module) -> bool:
    """Is this a normalisation layer: one of torch's, or a class with "Norm" in its name whose parameters are all vectors?"""
    own = list(module.parameters(recurse=False))
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)):
        return bool(own)
    vectors = all(parameter.ndim == 1 for parameter in own)
    return "Norm" in type(module).__name__ and bool(own) and vectors and not any(module.children())


def norm_parameters(model: nn.Module) -> Iterator[str]:
    """Names of the gains and shifts of all normalisation layers."""
    for name, module in model.named_modules():
        if is_norm(module):
            yield from (f"{name}.{own}" if name else own for own, _ in module.named_parameters(recurse=False))


class KeepStatistics(Hook):
    """Keeps batch-norm layers on their running statistics while their gains and shifts train."""

    def on_start(self, run: Run) -> None:
        """Mark them frozen, so that they stay in eval mode; gradients still reach their parameters."""
        for module in run.stage.model.modules():
            if isinstance(module, _NormBase):
                module.frozen = True  # type: ignore[assignment]


class NormOnly(Technique):
    """Trains the gains and shifts of normalisation layers (LayerNorm, RMSNorm, GroupNorm, BatchNorm) and the head.

    Frankle et al. 2021, arXiv:2003.00152 (BatchNorm alone); Ben Zaken et al. 2022, arXiv:2106.10199 for the biases. Running
    statistics stay at their pretrained values.

    Use it when there are few examples or many targets to store (0.1 % of the weights each), or when contrast, colour or style
    changed rather than content. Not when the target needs features that the network does not have.

    Attributes:
        biases: train all other biases too (BitFit).

    Example:
        ```yaml
        techniques:
          - NormOnly: {biases: true}
        ```
    """

    provides: ClassVar[frozenset[str]] = frozenset({"trains"})
    wraps: ClassVar[frozenset[str]] = frozenset({"hooks"})

    biases: bool = False

    def apply(self, recipe: Recipe) -> Recipe:
        """Every stage trains normalisation layers and the head only."""
        return each_stage(recipe, self._norms)

    def _norms(self, stage: Stage[Any]) -> Stage[Any]:
        names = set(norm_parameters(stage.model))
        if self.biases:
            names |= {name for name, _ in stage.model.named_parameters() if name.rpartition(".")[2] == "bias"}
        steering = chosen(stage, names, asked_by="NormOnly", what="normalisation layers")
        head = chosen(stage, parts_of(stage.model).head, asked_by="NormOnly", what="head")
        return replace(stage, trains=steering | head, hooks=(*stage.hooks, KeepStatistics()))
