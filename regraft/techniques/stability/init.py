"""Init: initial weights of networks that are trained from scratch, and of fresh heads."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from regraft.core import Recipe, Stage, Technique
from regraft.core.forward import forward, inputs_of
from regraft.errors import ConfigError, Conflict
from regraft.layers.initial import Kind, Nonlinearity, initialised, layers_of, unit_variance
from regraft.models.edit import edit_models
from regraft.models.graft import Graft
from regraft.models.parts import parts_of
from regraft.models.standard import StandardHead

MOST_TRIES = 10  # of scaling a layer; the second usually finds nothing to do


class Init(Technique):
    """Draws the weights of linear layers and convolutions anew, so that variances survive a deep network; biases become 0.

    "kaiming" (He et al., 2015, arXiv:1502.01852, eq. 10) for ReLU and its kin, "xavier" (Glorot and Bengio, 2010, AISTATS, eq.
    12) for tanh and linear layers, "orthogonal" (Saxe et al., 2014, arXiv:1312.6120). "lsuv" starts from orthogonal weights and
    scales each layer on a batch of the training data until its output has variance 1 (Mishkin and Matas, 2016,
    arXiv:1511.06422, algorithm 1), which suits any nonlinearity. Layers that are frozen keep their weights.

    Use it when a plain deep network is trained from scratch and the loss does not move, or moves to nan, in the first steps; lsuv
    where there is no normalisation. Not on pretrained weights, which it would throw away: there it is refused unless asked.

    Attributes:
        kind: how weights are drawn.
        nonlinearity: what follows the layers; its gain scales kaiming, xavier and orthogonal weights.
        layers: all of the network, or the head alone, which is fresh also where the rest is pretrained.
        pretrained: what happens to pretrained weights with `layers: all`.
        tolerance: of lsuv, how far from 1 a variance may stay.
        seed: decides the weights, with the place of each layer.

    Example:
        ```yaml
        models: {main: {network: ConvNet}}
        techniques:
          - Init: {kind: lsuv}
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"model"})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "inner"

    kind: Kind = "kaiming"
    nonlinearity: Nonlinearity = "relu"
    layers: Literal["all", "head"] = "all"
    pretrained: Literal["refuse", "overwrite"] = "refuse"
    tolerance: float = Field(default=0.02, gt=0, lt=1)
    seed: int = 0

    def apply(self, recipe: Recipe) -> Recipe:
        """Every model that is trained gets new weights."""
        return edit_models(recipe, self._edited)

    def _edited(self, model: nn.Module, stage: Stage[Any]) -> nn.Module:
        names = list(layers_of(model))
        if self.layers == "head":
            head = {name.rpartition(".")[0] for name in parts_of(model).head}
            names = [name for name in names if name in head]
        elif isinstance(model, (Graft, StandardHead)) and self.pretrained == "refuse":
            raise ConfigError(
                f"Init: stage {stage.name!r} trains a pretrained {type(model).__name__}, whose weights would be thrown away; set "
                "`layers: head` for the head alone, or `pretrained: overwrite`"
            )
        if not names:
            raise Conflict(
                f"Init: the {type(model).__name__} of stage {stage.name!r} has no linear layer or convolution to initialise "
                "there; drop it"
            )
        made = initialised(model, names, self.kind, nonlinearity=self.nonlinearity, seed=self.seed)
        if self.kind == "lsuv":
            unit_variance(made, names, lambda m: _run(m, stage), tolerance=self.tolerance, most=MOST_TRIES)
        return made


def _run(model: nn.Module, stage: Stage[Any]) -> None:
    """Call the model on the stage's first batch; of tasks, on the first one's examples.

    Raises:
        Conflict: the source yields nothing that it is called on.
    """
    with torch.random.fork_rng(devices=[]):
        batch = next(iter(stage.source.batches(model, 0)))
    keys = inputs_of(model)
    roles = [role for role in ("", "support_", "query_") if all(role + key in batch for key in keys)]
    if not roles:
        raise Conflict(
            f"Init: the source of stage {stage.name!r} yields {sorted(batch)}, but the {type(model).__name__} is called on "
            f"{list(keys)}, so lsuv cannot see its outputs; take `kind: orthogonal`"
        )
    forward(model, {name: value[0] for name, value in batch.items()} if roles[0] else batch, prefix=roles[0])
