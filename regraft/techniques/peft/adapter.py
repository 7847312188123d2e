"""Bottleneck adapters: small networks inside the blocks train, the blocks themselves stay as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from regraft.core.stage import Recipe, Stage
from regraft.core.technique import Technique
from regraft.errors import Conflict
from regraft.layers.bottleneck import Bottlenecks, adapter_parameters, insert, places_for
from regraft.models.edit import edit_models
from regraft.models.example import run_once
from regraft.models.freeze import KeepStatistics
from regraft.models.parts import chosen, parts_of
from regraft.models.placement import Placement, placed, sublayer_ends


class Adapter(Technique):
    """Trains bottlenecks h + up(relu(down(h))) inside the blocks, and the head; all else is frozen.

    `pfeiffer` puts one into each block, on what the block hands on: after the feed-forward part, its residual and its norm
    (Pfeiffer et al. 2021, arXiv:2005.00247; as placed by He et al. 2022, arXiv:2110.04366, section 2.2). `houlsby` puts two into
    each, after attention and after the feed-forward layer, before their residuals are added (Houlsby et al. 2019,
    arXiv:1902.00751, section 2.1 and figure 2; they apply dropout before the adapter, here it follows). `up` starts at zero, so
    the first output is the base model's bit for bit. `pfeiffer` also takes vectors and maps (1x1 convolutions).

    Use it when the base must stay untouched and shared, and the target asks for functions that a change of the weights' rank
    does not express. Not when latency counts: adapters stay in the forward pass, LoRA is merged away. What so few weights can
    learn is limited, and more so in the wrong blocks: search over `blocks`, and let full fine-tuning race against it.

    Attributes:
        width: of the bottleneck; 2 x channels x width weights each.
        kind: `pfeiffer`, one a block, or `houlsby`, two a block, which needs blocks with attention.
        blocks: all of them, a number for so many of the top ones, or a list of numbers, 1 for the lowest.
        seed: decides the initial `down`; nothing else does.

    Example:
        ```yaml
        train: {optimizer: {AdamW: {lr: 0.001}}}
        techniques:
          - Adapter: {kind: houlsby, width: 32}
        ```
    """

    provides: ClassVar[frozenset[str]] = frozenset({"model", "trains"})
    wraps: ClassVar[frozenset[str]] = frozenset({"hooks"})

    width: int = Field(default=32, ge=1)
    kind: Literal["pfeiffer", "houlsby"] = "pfeiffer"
    blocks: Placement = "all"
    seed: int = 0

    def apply(self, recipe: Recipe) -> Recipe:
        """Every model that is trained gets adapters once, and every stage trains them and the head."""
        return edit_models(recipe, lambda model, stage: self._adapted(stage), self._trained)

    def _adapted(self, stage: Stage[Any]) -> nn.Module:
        model = stage.model

        def run(module: nn.Module) -> None:
            run_once(module, stage, asked_by="Adapter", instead="use LoRA")

        found = placed(model, self.blocks, asked_by="Adapter")
        names = [block.name for block in found] if self.kind == "pfeiffer" else sublayer_ends(model, found, run)
        places = places_for(model, names, run)
        if not places:
            lacks = (
                "has no chain of blocks that its forward pass calls; put its blocks into an nn.ModuleList or nn.Sequential, or "
                "use LoRA"
                if self.kind == "pfeiffer"
                else "has no blocks of attention and a feed-forward part, so there is no place for two adapters a block; use "
                "`kind: pfeiffer`"
            )
            raise Conflict(f"Adapter: the {type(model).__name__} in stage {stage.name!r} {lacks}")
        return insert(model, Bottlenecks(width=self.width, places=places), seed=self.seed)

    def _trained(self, stage: Stage[Any], model: nn.Module) -> Stage[Any]:
        head = chosen(stage, parts_of(stage.model).head, asked_by="Adapter", what="head")
        hooks = (*stage.hooks, KeepStatistics())  # also where a block is itself a layer of batch normalisation
        return replace(stage, model=model, trains=head | adapter_parameters(model), hooks=hooks)
