"""Images and feature maps with their channels innermost in memory, the order in which convolution kernels read fastest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from regraft.core import Recipe, Stage, Technique, each_stage
from regraft.core.protocols import SourceWrapper
from regraft.core.values import Batch
from regraft.errors import Conflict


def channels_last(batch: Batch) -> Batch:
    """The batch with every floating-point (N, C, H, W) tensor laid out as N, H, W, C in memory; shapes and values stay."""
    return {
        key: value.contiguous(memory_format=torch.channels_last)
        if value.ndim == 4 and value.is_floating_point()
        else value
        for key, value in batch.items()
    }


class InnermostChannels(SourceWrapper):
    """`base` with its images and feature maps in channels-last format."""

    def batches(self, model: nn.Module, start: int = 0, /) -> Iterator[Batch]:
        """The source's batches, laid out anew."""
        for batch in self.base.batches(model, start):
            yield channels_last(batch)


class ChannelsLast(Technique):
    """Trains convolutional networks on batches in channels-last memory format, which most convolution kernels are faster on.

    A convolution follows the format of its input, so every feature map after it is channels-last too. The weights keep their
    own format, and with them checkpoints, optimizer state and the saved model. The numbers are those without it up to rounding.

    Use it when a network of convolutions trains. Not for networks without 2-d convolutions, which are refused, nor for
    vision transformers, whose one convolution cuts the image into patches.

    Example:
        ```yaml
        techniques:
          - ChannelsLast
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"source"})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "outer"  # also what a stored prefix hands on

    def apply(self, recipe: Recipe) -> Recipe:
        """Every stage's batches are laid out anew."""
        return each_stage(recipe, self._laid_out)

    def _laid_out(self, stage: Stage[Any]) -> Stage[Any]:
        if not any(isinstance(module, nn.Conv2d) for module in stage.model.modules()):
            raise Conflict(
                f"ChannelsLast: the {type(stage.model).__name__} of stage {stage.name!r} has no 2-d convolution, so the memory "
                "format of its batches would have no effect; drop ChannelsLast"
            )
        return replace(stage, source=InnermostChannels(stage.source))
