"""LoRA: the weights stay as they are, and a low-rank change beside each of them trains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from regraft.core.stage import Recipe, Stage
from regraft.core.technique import Technique
from regraft.errors import ConfigError
from regraft.layers.low_rank import LowRank, find_targets, inject, low_rank_parameters
from regraft.models.edit import edit_models
from regraft.models.parts import chosen, parts_of
from regraft.models.placement import Placement, placed
from regraft.models.trace import holds


class LoRA(Technique):
    """Trains low-rank changes of the linear layers (or 1x1 convolutions) in the blocks, and the head; all else is frozen.

    W becomes W + (alpha / rank) B A. Hu et al. 2021, arXiv:2106.09685, eq. 3; through peft. B starts at zero, so the first output
    is the base model's bit for bit. Batch-norm statistics stay fixed: peft itself lets them drift in training mode.

    Use it when one base serves many targets, memory for optimizer state is short, or full fine-tuning forgets too much. Not
    when the network is small: training all of it costs little more and does better. How far a low rank gets depends on the layers
    it is put beside: search over `targets` and `blocks`, and let full fine-tuning race against it.

    Attributes:
        rank: of each change; at most the smaller side of the smallest adapted layer.
        alpha: the change is scaled by alpha / rank, so the learning rate can stay when the rank changes.
        targets: "auto" for every linear layer in the blocks (else every 1x1 convolution), or patterns of layer names such as
            "query" or "attention.*"; a pattern matches the whole name or the end of it.
        blocks: all of them, a number for so many of the top ones, or a list of numbers, 1 for the lowest; with fewer, only
            targets in these are adapted.
        dropout: of the input of each change.
        seed: decides the initial A; nothing else does.

    Example:
        ```yaml
        train: {optimizer: {AdamW: {lr: 0.001}}}
        techniques:
          - LoRA: {rank: 8, targets: [query, value]}
        ```
    """

    provides: ClassVar[frozenset[str]] = frozenset({"model", "trains"})

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    targets: str | tuple[str, ...] = "auto"
    blocks: Placement = "all"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    seed: int = 0

    def apply(self, recipe: Recipe) -> Recipe:
        """Every model that is trained gets adapters once, and every stage trains them and the head."""
        return edit_models(recipe, lambda model, stage: self._adapted(model), self._trained)

    def _adapted(self, model: nn.Module) -> nn.Module:
        targets = find_targets(model, self.targets)
        if self.blocks != "all":
            kept = [block.name for block in placed(model, self.blocks, asked_by="LoRA")]
            targets = tuple(name for name in targets if any(holds(block, name) for block in kept))
            if not targets:
                raise ConfigError(f"LoRA: no layer of `targets` is in the blocks {kept}; choose others")
        return inject(
            model, LowRank(targets=targets, rank=self.rank, alpha=self.alpha, dropout=self.dropout), seed=self.seed
        )

    def _trained(self, stage: Stage[Any], model: nn.Module) -> Stage[Any]:
        head = chosen(stage, parts_of(stage.model).head, asked_by="LoRA", what="head")
        return replace(stage, model=model, trains=head | low_rank_parameters(model))
