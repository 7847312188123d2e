"""Partial fine-tuning: the head and the last k blocks train, everything below stays as it was pretrained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from regraft.core.stage import Recipe, Stage, each_stage
from regraft.core.technique import Technique
from regraft.errors import ConfigError
from regraft.models.parts import chosen, parts_of


class LastK(Technique):
    """Trains only the head, the last `blocks` blocks and what lies between them (a final norm, a pooler).

    Low layers are general and high layers specific, so the high ones are adapted first (Yosinski et al. 2014, arXiv:1411.1792,
    section 4). What is frozen is frozen entirely: weights, running statistics, dropout and weight decay.

    Use it when the target is near the source and the data are few, or when `CachePrefix` is to save most of the forward pass.
    Not when the input itself has changed (other sensors, other language): then the low blocks have to move too.

    Attributes:
        blocks: how many blocks below the head train; 0 trains the head alone, as a probe does.

    Example:
        ```yaml
        techniques:
          - LastK: {blocks: 2}
          - CachePrefix
        ```
    """

    provides: ClassVar[frozenset[str]] = frozenset({"trains"})

    blocks: int = Field(default=2, ge=0)

    def apply(self, recipe: Recipe) -> Recipe:
        """Every stage trains the top of its model only."""
        return each_stage(recipe, self._frozen_below)

    def _frozen_below(self, stage: Stage[Any]) -> Stage[Any]:
        parts = parts_of(stage.model)
        if self.blocks > len(parts.blocks):
            raise ConfigError(
                f"LastK.blocks: must be at most {len(parts.blocks)} (the blocks below the head of the "
                f"{type(stage.model).__name__} in stage {stage.name!r}), got {self.blocks}"
            )
        what = f"head and last {self.blocks} blocks"
        return replace(stage, trains=chosen(stage, parts.top(self.blocks), asked_by="LastK", what=what))
