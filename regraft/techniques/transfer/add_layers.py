"""Additive fine-tuning: new residual layers on top of the network train, all that was pretrained stays as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from regraft.core.stage import Recipe, Stage
from regraft.core.technique import Technique
from regraft.errors import Conflict
from regraft.layers.bottleneck import places_for
from regraft.layers.extra import ExtraLayers, extend, extra_parameters
from regraft.models.blocks import blocks
from regraft.models.edit import edit_models
from regraft.models.example import run_once
from regraft.models.freeze import KeepStatistics
from regraft.models.parts import chosen, may_train, parts_of

INSTEAD = "use LoRA"


class AddLayers(Technique):
    """Adds residual layers x + up(gelu(down(norm(x)))) after the last block; they and the head train, the base is frozen.

    Additive fine-tuning in the sense of Lialin et al. 2023, arXiv:2303.15647: capacity is added where the features leave the
    network. `up` starts at zero, so the first output is the base model's bit for bit; the layers can be taken off again
    (`regraft.layers.extra.shortened`). Takes tokens, vectors and maps (1x1 convolutions). A saved model keeps them.

    Use it when a linear head on frozen features falls short and the base must stay as it is, for instance because others use
    it. Not when the features of the last block lack what is asked for: LoRA and Adapter reach into every block.

    Attributes:
        layers: how many, one after another.
        width: of the layer between `down` and `up`; by default four times the channels.
        base: "frozen", or "trained", which trains all of the network with them.
        seed: decides the initial `down`; nothing else does.

    Example:
        ```yaml
        train: {optimizer: {AdamW: {lr: 0.001}}}
        techniques:
          - AddLayers: {layers: 2, width: 256}
        ```
    """

    provides: ClassVar[frozenset[str]] = frozenset({"model", "trains"})
    wraps: ClassVar[frozenset[str]] = frozenset({"hooks"})

    layers: int = Field(default=1, ge=1)
    width: int | None = Field(default=None, ge=1)
    base: Literal["frozen", "trained"] = "frozen"
    seed: int = 0

    def apply(self, recipe: Recipe) -> Recipe:
        """Every model that is trained is extended once, and every stage trains the new layers and the head."""
        return edit_models(recipe, lambda model, stage: self._extended(stage), self._trained)

    def _extended(self, stage: Stage[Any]) -> nn.Module:
        model = stage.model
        heads = {name.rpartition(".")[0] for name in parts_of(model).head}
        names = [b.name for b in blocks(model) if any(True for _ in b.module.parameters()) and b.name not in heads]
        called = places_for(model, names, lambda m: run_once(m, stage, asked_by="AddLayers", instead=INSTEAD))
        if not called:
            raise Conflict(
                f"AddLayers: the {type(model).__name__} in stage {stage.name!r} has no chain of blocks that its forward pass "
                "calls; put its blocks into an nn.ModuleList or nn.Sequential, or use LoRA"
            )
        place, (channels, maps) = list(called.items())[-1]
        width = 4 * channels if self.width is None else self.width
        description = ExtraLayers(place=place, channels=channels, maps=maps, count=self.layers, width=width)
        return extend(model, description, seed=self.seed)

    def _trained(self, stage: Stage[Any], model: nn.Module) -> Stage[Any]:
        if self.base == "trained":
            return replace(stage, model=model, trains=may_train(stage) | extra_parameters(model))
        head = chosen(stage, parts_of(stage.model).head, asked_by="AddLayers", what="head")
        hooks = (*stage.hooks, KeepStatistics())
        return replace(stage, model=model, trains=head | extra_parameters(model), hooks=hooks)
