"""Sources whose plain examples look new each time, and pictures of a batch as values in [0, 1] with their masks and boxes.

Every change is a function of (seed, step, example): a resumed run sees what it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from regraft.core.compile import ROLES, nest
from regraft.core.protocols import Encoded, Source, SourceWrapper, layers
from regraft.core.seeding import mix, stream
from regraft.core.stage import Recipe, Stage, each_stage
from regraft.core.values import Batch
from regraft.data.augment import uniforms
from regraft.errors import Conflict

MASK, BOXES = "mask", "boxes"  # batch keys of what moves with a picture


def is_plain(key: str) -> bool:
    """Is a batch key one of the examples themselves, and not of a role such as `target_x`?"""
    return not key.startswith(tuple(f"{role}_" for role in ROLES))


class Changed(SourceWrapper):
    """`base` with every batch changed: override `changed`. Examples of roles, such as `target_x`, stay as they are."""

    @property
    def examples(self) -> Mapping[str, Encoded]:
        """Those of roles alone: a plain example looks new each time, so nothing of it can be stored."""
        kept = {key for name, key in self.inputs.items() if not is_plain(name)}
        return {key: encoded for key, encoded in self.base.examples.items() if key in kept}

    def batches(self, model: nn.Module, start: int = 0, /) -> Iterator[Batch]:
        """The source's batches, changed."""
        return (self.changed(batch, step) for step, batch in enumerate(self.base.batches(model, start), start))

    def changed(self, batch: Batch, step: int) -> Batch:
        """The batch of a step as it is trained on."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it changes a batch")


# ---- pictures


@dataclass(frozen=True)
class Pictures:
    """N pictures with what must move along."""

    pixels: Tensor  # (N, C, H, W) in [0, 1]
    mask: Tensor | None = None  # (N, H, W) class ids or values of each pixel
    boxes: Tensor | None = None  # (N, K, 4) left, top, right, bottom in pixels; the picture spans 0 to W and 0 to H


class PictureChange(Protocol):
    """A change of pictures that is a function of uniform numbers."""

    @property
    def num_draws(self) -> int:
        """D, the uniform numbers that each picture needs; 0 where nothing is changed."""
        ...

    def picture(self, pictures: Pictures, draws: Tensor, /) -> Pictures:
        """The pictures changed, for uniform numbers (N, D) in [0, 1)."""
        ...


class Redrawn(Changed):
    """`base` with its pictures changed, each by uniform numbers of (seed, step, example)."""

    def __init__(self, base: Source, change: PictureChange, *, seed: int) -> None:
        super().__init__(base)
        self.change, self.seed = change, seed

    def describe(self) -> str:
        """The change around the source."""
        return f"{type(self.change).__name__}({nest(self.base)})"

    def changed(self, batch: Batch, step: int) -> Batch:
        """The batch with its pictures, masks and boxes changed.

        Raises:
            Conflict: the batch holds no pictures, or pictures whose range is not known.
        """
        key = picture_key(batch, self.inputs, name=type(self.change).__name__)
        ids = batch[self.inputs[key]].cpu().numpy()
        draws = uniforms(mix(self.seed, step, stream(type(self.change).__name__)), ids, self.change.num_draws).to(
            batch[key].device
        )
        scale = scale_of(self.base, batch[key], name=type(self.change).__name__)
        before = Pictures(scale.shown(batch[key]), batch.get(MASK), batch.get(BOXES))
        after = self.change.picture(before, draws)
        out = dict(batch) | {
            key: torch.where(after.pixels == before.pixels, batch[key], scale.normalised(after.pixels))
        }
        found = {MASK: after.mask, BOXES: after.boxes}
        return out | {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Scale:
    """How pixels in [0, 1] become a model's values: `value = pixel * scale + shift`, a number for each channel."""

    scale: Tensor  # (C, 1, 1)
    shift: Tensor  # (C, 1, 1)

    def shown(self, values: Tensor) -> Tensor:
        """Pixels in [0, 1]."""
        return ((values - self.shift) / self.scale).clamp(0, 1)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Values as the model takes them."""
        return pixels * self.scale + self.shift


def scale_of(source: Source, values: Tensor, *, name: str) -> Scale:
    """The scale of a source's pictures: that of its encoded images, else they are in [0, 1] already.

    Raises:
        Conflict: the values say otherwise.
    """
    for layer in layers(source):
        encoded: Any = getattr(layer, "encoded", None)
        if hasattr(encoded, "scale") and hasattr(encoded, "shift"):
            column = [torch.tensor(v, device=values.device)[:, None, None] for v in (encoded.scale, encoded.shift)]
            return Scale(255 * column[0], column[1])
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise Conflict(
            f"{name}: pictures of a source of your own must hold values from 0 to 1, got {low:.3g} to {high:.3g}; scale them, or "
            "give its encoded examples the `scale` and `shift` of each channel"
        )
    one = values.new_ones(values.shape[1], 1, 1)
    return Scale(one, torch.zeros_like(one))


def picture_key(batch: Mapping[str, Tensor], inputs: Mapping[str, str], *, name: str) -> str:
    """The plain input of a batch that holds pictures (N, C, H, W).

    Raises:
        Conflict: there is none.
    """
    for key in inputs:
        if is_plain(key) and key in batch and batch[key].ndim == 4 and batch[key].is_floating_point():
            return key
    raise Conflict(
        f"{name} changes pictures (N, C, H, W), but the source yields {', '.join(sorted(inputs))} and none of them holds "
        f"pictures; drop {name}"
    )


def require_pictures(source: Source, *, name: str) -> None:
    """Refuse a source whose examples are known to be no pictures, when a recipe is compiled.

    Raises:
        Conflict: an example is a text, a row of a table or a vector, or examples come as tasks.
    """
    inputs = {key: by for key, by in source.inputs.items() if is_plain(key)}
    known = _one_example(source, inputs)
    if known is not None or not inputs:
        picture_key(known or {}, inputs or source.inputs, name=name)


def _one_example(source: Source, inputs: Mapping[str, str]) -> dict[str, Tensor] | None:
    """The inputs of the first example; None where the source does not offer its examples."""
    for layer in layers(source):
        encoded = getattr(layer, "encoded", None)
        if encoded is not None and len(encoded):
            return cast(Encoded, encoded).collate(np.arange(1))
    offered = {key: source.examples[by] for key, by in inputs.items() if by in source.examples}
    return next((one.collate(np.arange(1)) for one in offered.values()), None)


def redrawn(recipe: Recipe, change: PictureChange, *, seed: int) -> Recipe:
    """The recipe with the pictures of every stage changed; as it is where the change needs no numbers.

    Raises:
        Conflict: a stage has no pictures.
    """

    def edited(stage: Stage[Any]) -> Stage[Any]:
        require_pictures(stage.source, name=type(change).__name__)
        return replace(stage, source=Redrawn(stage.source, change, seed=seed))

    return each_stage(recipe, edited) if change.num_draws else recipe
