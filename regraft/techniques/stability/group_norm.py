"""GroupNorm: batch normalisation gives way to one that looks at each example alone."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from regraft.core import Recipe, Stage, Technique
from regraft.errors import Conflict
from regraft.layers.group_norm import Grouping, batch_norms, groups_for, to_group_norm
from regraft.models.edit import edit_models


class GroupNorm(Technique):
    """Exchanges every batch normalisation for group normalisation with the same gains and shifts, before training starts.

    Wu and He, 2018, arXiv:1803.08494, eq. 7. Statistics are taken over groups of an example's channels, in training and in use
    alike, so batches may be as small as memory asks for, slices of a batch give its exact gradient, and running statistics are
    gone. Names and shapes of all weights stay. The saved model holds group normalisation.

    Use it when batches, or slices of them, hold fewer than 16 examples. On a pretrained network its outputs change at once and
    fine-tuning has to win them back, so there it takes all weights and some hundred steps. Not with large batches, where batch
    normalisation is as good and runs with statistics folded away; and where only the head trains, freeze it instead.

    Attributes:
        groups: of channels in each layer at most; as many as leave 4 channels in each.

    Example:
        ```yaml
        models: {main: {network: ConvNet}}
        train: {batch_size: 8}
        techniques:
          - GroupNorm: {groups: 8}
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"model"})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "inner"

    groups: int = Field(default=32, ge=1)

    def apply(self, recipe: Recipe) -> Recipe:
        """Every model that is trained is converted."""
        return edit_models(recipe, self._edited)

    def _edited(self, model: nn.Module, stage: Stage[Any]) -> nn.Module:
        found = batch_norms(model)
        if not found:
            raise Conflict(
                f"GroupNorm: the {type(model).__name__} of stage {stage.name!r} has no batch normalisation to exchange; drop it"
            )
        return to_group_norm(
            model, Grouping(groups={name: groups_for(norm.num_features, self.groups) for name, norm in found.items()})
        )
