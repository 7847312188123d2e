"""Prefix tuning: every attention layer gets some trained keys and values, the network itself stays as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from regraft.core.forward import forward, inputs_of
from regraft.core.modes import eval_mode
from regraft.core.stage import Recipe, Stage
from regraft.core.technique import Technique
from regraft.errors import Conflict, ModelError
from regraft.layers.prefix import Prefixes, choosable, insert, prefix_parameters, start_from, watch_attention
from regraft.models.edit import edit_models
from regraft.models.example import run_once
from regraft.models.parts import chosen, parts_of
from regraft.models.placement import Placement, placed
from regraft.models.trace import holds

TOLERANCE = 1e-5  # of the largest output: the plain formula sums in another order than a fused one


class PrefixTuning(Technique):
    """Trains keys and values of virtual tokens in front of those of every attention layer, and the head; all else is frozen.

    Li and Liang 2021, arXiv:2101.00190, eq. 3. Every real token attends to them; they stand at no position, take no place in the
    text, and nothing is pooled over them. They start from the keys and values of the first real tokens of the data (section 7.4),
    so the first output is near the base model's, not equal to it. Any transformers network takes them that lets its attention be
    chosen: encoders and decoders of text, and vision transformers. Texts may be packed.

    Use it when one frozen network serves many targets in one batch, since nothing but the prefix differs between them. Not
    when there are few layers or the target is far: LoRA and adapters reach further at the same number of weights.

    Attributes:
        tokens: virtual tokens a layer; 2 x tokens x width weights each.
        hidden: 0 trains keys and values themselves; else the width of a perceptron in each layer that makes them, as in section
            4.3, which starts at random and wants more steps.
        blocks: all of them, a number for so many of the top ones, or a list of numbers, 1 for the lowest.
        seed: decides the first weights of the perceptrons.

    Example:
        ```yaml
        train: {optimizer: {AdamW: {lr: 0.005}}}
        techniques:
          - PrefixTuning: {tokens: 20}
        ```
    """

    provides: ClassVar[frozenset[str]] = frozenset({"model", "trains"})

    tokens: int = Field(default=20, ge=1)
    hidden: int = Field(default=0, ge=0)
    blocks: Placement = "all"
    seed: int = 0

    def apply(self, recipe: Recipe) -> Recipe:
        """Every model that is trained gets prefixes once, and every stage trains them and the head."""
        return edit_models(recipe, lambda model, stage: self._adapted(stage), self._trained)

    def _adapted(self, stage: Stage[Any]) -> nn.Module:
        model = stage.model
        try:
            plain = choosable(model)
        except ModelError as error:
            raise Conflict(f"PrefixTuning: {error}") from None
        _require_same_numbers(model, plain, stage)
        seen = watch_attention(plain, lambda module: _run_on_data(module, stage))
        kept = [block.name for block in placed(model, self.blocks, asked_by="PrefixTuning")]
        seen = {name: layer for name, layer in seen.items() if any(holds(block, name) for block in kept)}
        if not seen:
            raise Conflict(f"PrefixTuning: no attention layer of the {type(model).__name__} takes a prefix; use LoRA")
        places = {name: (layer.key.shape[1], layer.key.shape[3]) for name, layer in seen.items()}
        description = Prefixes(tokens=self.tokens, hidden=self.hidden, places=places)
        adapted = insert(model, description, seed=self.seed)
        if not self.hidden:
            start_from(adapted, seen)
        return adapted

    def _trained(self, stage: Stage[Any], model: nn.Module) -> Stage[Any]:
        head = chosen(stage, parts_of(stage.model).head, asked_by="PrefixTuning", what="head")
        return replace(stage, model=model, trains=head | prefix_parameters(model))


def _run_on_data(model: nn.Module, stage: Stage[Any]) -> torch.Tensor | None:
    """Call a model on the first batch of a stage, or on an example where the batch is of another form."""
    with torch.random.fork_rng(devices=[]):
        batch = next(iter(stage.source.batches(stage.model, 0)))
    if all(key in batch for key in inputs_of(model)):
        return forward(model, batch)
    run_once(model, stage, asked_by="PrefixTuning", instead="use LoRA")
    return None


@torch.no_grad()
def _require_same_numbers(model: nn.Module, plain: nn.Module, stage: Stage[Any]) -> None:
    """A Conflict unless the plain formula of attention gives the model's own numbers."""
    outputs: list[torch.Tensor | None] = []
    for module in (model, plain):
        with eval_mode(module):
            try:
                outputs.append(_run_on_data(module, stage))
            except TypeError as error:  # an attention whose scores are changed on the way
                raise Conflict(
                    f"PrefixTuning: the {type(model).__name__} cannot take a prefix: {error}; use LoRA"
                ) from None
    want, got = outputs
    if want is not None and got is not None and not (want - got).abs().max() <= TOLERANCE * want.abs().max():
        raise Conflict(
            f"PrefixTuning: the attention of the {type(model).__name__} is not the plain formula, so no prefix can be put before "
            "it; use LoRA"
        )
