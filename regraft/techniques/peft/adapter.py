"""Bottleneck adapters: a small network after every block trains, the blocks themselves stay as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from regraft.core.forward import forward, inputs_of
from regraft.core.stage import Recipe, Stage, each_stage
from regraft.core.technique import Technique
from regraft.errors import Conflict
from regraft.layers.bottleneck import Bottlenecks, adapter_parameters, insert, places_for
from regraft.models.blocks import blocks
from regraft.models.parts import chosen, parts_of


class Adapter(Technique):
    """Trains a bottleneck h + up(relu(down(h))) after every block, and the head; all else is frozen.

    Houlsby et al. 2019, arXiv:1902.00751, section 2.1; one adapter a block, as in Pfeiffer et al. 2020, arXiv:2005.00247. `up`
    starts at zero, so the first output is the base model's bit for bit. Takes tokens, vectors and maps (1x1 convolutions).

    Use it when the base must stay untouched and shared, and the target asks for functions that a change of the weights' rank
    does not express. Not when latency counts: adapters stay in the forward pass, LoRA is merged away.

    Attributes:
        width: of the bottleneck; 2 x channels x width weights a block.
        seed: decides the initial `down`; nothing else does.

    Example:
        ```yaml
        train: {optimizer: {AdamW: {lr: 0.001}}}
        techniques:
          - Adapter: {width: 32}
        ```
    """

    provides: ClassVar[frozenset[str]] = frozenset({"model", "trains"})

    width: int = Field(default=32, ge=1)
    seed: int = 0

    def apply(self, recipe: Recipe) -> Recipe:
        """Every model that is trained gets adapters once, and every stage trains them and the head."""
        adapted: dict[int, nn.Module] = {}
        for stage in recipe.stages:
            if id(stage.model) not in adapted:
                adapted[id(stage.model)] = self._adapted(stage)
        whole = adapted.get(id(recipe.model), recipe.model)
        return replace(each_stage(recipe, lambda s: self._trained(s, adapted[id(s.model)])), model=whole)

    def _adapted(self, stage: Stage[Any]) -> nn.Module:
        model = stage.model
        trained_as_head = {name.rpartition(".")[0] for name in parts_of(model).head}
        names = [
            b.name for b in blocks(model) if any(True for _ in b.module.parameters()) and b.name not in trained_as_head
        ]
        places = places_for(model, names, lambda module: _run_once(module, stage))
        if not places:
            raise Conflict(
                f"Adapter: the {type(model).__name__} in stage {stage.name!r} has no chain of blocks that its forward pass "
                "calls; put its blocks into an nn.ModuleList or nn.Sequential, or use LoRA"
            )
        return insert(model, Bottlenecks(width=self.width, places=places), seed=self.seed)

    def _trained(self, stage: Stage[Any], model: nn.Module) -> Stage[Any]:
        head = chosen(stage, parts_of(stage.model).head, asked_by="Adapter", what="head")
        return replace(stage, model=model, trains=head | adapter_parameters(model))


def _run_once(model: nn.Module, stage: Stage[Any]) -> None:
    """Call the model on its own example, or on the first batch of the stage."""
    example = getattr(model, "example", None)
    if example is not None:
        model(**example)
        return
    with torch.random.fork_rng(devices=[]):
        batch = next(iter(stage.source.batches(model, 0)))
    roles = [role for role in ("", "support_") if all(role + key in batch for key in inputs_of(model))]
    if not roles:
        raise Conflict(
            f"Adapter: the source of stage {stage.name!r} yields {sorted(batch)}, but the {type(model).__name__} is called on "
            f"{list(inputs_of(model))}, so the shapes of its blocks cannot be seen; use LoRA"
        )
    forward(model, {name: value[:2] for name, value in batch.items()}, prefix=roles[0])
