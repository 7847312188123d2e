"""Discriminative learning rates: the lower a block lies, the smaller its learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from regraft.core.compile import nest
from regraft.core.protocols import NamedParams, Update, UpdateBuilder, layers
from regraft.core.stage import Recipe, Stage, each_stage
from regraft.core.technique import Technique
from regraft.models.layer_scores import layers_of
from regraft.models.parts import Parts, chosen, may_train, parts_of
from regraft.optim.build import DescentBuilder


def depth_rates(parts: Parts, *, decay: float, head: float) -> dict[str, float]:
    """Parameter name -> factor on the learning rate: `decay**d` for the d-th block from the top, the top one being d = 0.

    Howard and Ruder 2018, arXiv:1801.06146, section 3.2: eta^(l-1) = eta^l / 2.6, which is a decay of 0.385. What follows the
    blocks goes with the top one, the stem lies one below the lowest.
    """
    rates = dict.fromkeys(parts.head, head) | dict.fromkeys(parts.after, 1.0)
    for depth, block in enumerate(reversed(parts.blocks)):
        rates |= dict.fromkeys(block, decay**depth)
    return rates | dict.fromkeys(parts.stem, decay ** len(parts.blocks))


@dataclass(frozen=True)
class ScaledRates:
    """Builds an update and scales its learning rates; names are those of the stage model's parameters."""

    base: UpdateBuilder
    rates: Mapping[str, float]
    groups: tuple[tuple[str, float], ...]  # (layer, learning rate), from the input to the head

    def __call__(self, params: NamedParams) -> Update:
        """The update of these parameters at the scaled rates; parameters of an objective keep theirs."""
        update = self.base(params)
        update.scale_rates({f"model.{name}": rate for name, rate in self.rates.items()})
        return update

    def describe(self) -> str:
        """What it wraps, and the learning rate of every layer."""
        return f"ScaledRates({nest(self.base)}), " + ", ".join(f"{layer} {rate:.4g}" for layer, rate in self.groups)


class Discriminative(Technique):
    """Scales the learning rate of the d-th block from the top by `decay**d`, and of the head by `head`.

    Howard and Ruder 2018 (ULMFiT), arXiv:1801.06146, section 3.2; there the decay is 1/2.6 a layer, usual today is 0.65 to 0.9
    a block. The top block is d = 0, the stem lies one below the lowest block.

    Use it when all or most of a pretrained network trains: the head needs a large rate, the low blocks are better left near
    where they are. Not when only the head or adapters train: there is nothing to tell apart.

    Attributes:
        decay: factor on the learning rate from one block to the next one down; 1 leaves all blocks alike.
        head: factor on the learning rate of the head.
        embeddings: "frozen" takes what runs before the first block (embeddings, a convolutional stem) out of training.

    Example:
        ```yaml
        train: {optimizer: {AdamW: {lr: 0.0005}}}
        techniques:
          - Discriminative: {decay: 0.8, head: 2.0}
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"trains", "update"})

    decay: float = Field(default=0.8, gt=0, le=1)
    head: float = Field(default=1.0, gt=0)
    embeddings: Literal["trained", "frozen"] = "trained"

    def apply(self, recipe: Recipe) -> Recipe:
        """Every stage's update is built at the scaled rates."""
        return each_stage(recipe, self._scaled)

    def _scaled(self, stage: Stage[Any]) -> Stage[Any]:
        parts = parts_of(stage.model)
        rates = depth_rates(parts, decay=self.decay, head=self.head)
        stage = replace(stage, update=ScaledRates(stage.update, rates, _groups(stage, rates)))
        if self.embeddings == "trained":
            return stage
        above = may_train(stage) - set(parts.stem)
        return replace(stage, trains=chosen(stage, above, asked_by="Discriminative", what="blocks and head"))


def _groups(stage: Stage[Any], rates: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """Every layer and its learning rate before the schedule; the factor on it where the optimizer is not known yet."""
    builders = (each for each in layers(stage.update) if isinstance(each, DescentBuilder))
    optimizer = getattr(next(builders, None), "optimizer", None)
    rate = float(getattr(optimizer, "lr", 1.0))
    return tuple((layer.name, rate * rates[layer.parameters[0]]) for layer in layers_of(stage.model))
