"""MixUp and CutMix: train on mixtures of two examples towards both labels, on straight lines or with a part pasted in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from regraft.core import Objective, Recipe, Stage, Technique, each_stage
from regraft.core.protocols import Source, layers
from regraft.core.seeding import mix
from regraft.core.values import Batch, size
from regraft.data.changed import BOXES, MASK, Changed, is_plain, picture_key, require_pictures
from regraft.errors import Conflict
from regraft.losses.supervised import OBJECTIVES, OTHER, SHARE

_STREAM = 0x6D6978  # tells these draws from others with the same seed and step


def mixing(count: int, alpha: float, *, seed: int, step: int) -> tuple[float, np.ndarray]:
    """The share of the first of each pair, drawn from Beta(alpha, alpha), and the partners (N,): of (seed, step) alone."""
    draw = np.random.default_rng(mix(seed, step, _STREAM))
    return float(draw.beta(alpha, alpha)), draw.permutation(count)


def mixed(batch: Batch, share: float, partners: np.ndarray) -> Batch:
    """The batch with every column of numbers at `share` of the example and 1 - `share` of its partner.

    Zhang et al., 2018, arXiv:1710.09412, eq. 1. Class ids `y` stay, beside those of the partners and the share of each row,
    which `losses.supervised.cross_entropy` weighs. Columns of a role, such as `target_x`, are of other examples and stay.

    Raises:
        Conflict: the batch holds boxes, or a mask of class ids.
    """
    if MASK in batch and not batch[MASK].is_floating_point():
        raise Conflict(
            f"MixUp takes means of two examples, but `{MASK}` holds whole numbers, such as the classes of pixels; use CutMix "
            "without mixup_alpha, which pastes them"
        )
    return _shared(batch, share, partners, lambda key, value, partner: share * value + (1 - share) * partner)


def _shared(batch: Batch, share: float, partners: np.ndarray, join: Callable[[str, Tensor, Tensor], Tensor]) -> Batch:
    """The batch with its columns of numbers joined with those of the partners, and class ids beside the partners'."""
    if BOXES in batch:
        raise Conflict(
            f"MixUp and CutMix give an example the labels of two, and do not know what becomes of its `{BOXES}`; drop them"
        )
    out = dict(batch)
    for key, value in batch.items():
        if not is_plain(key):
            continue
        partner = value[torch.from_numpy(partners).to(value.device)]
        if value.is_floating_point() or key == MASK:
            out[key] = join(key, value, partner)
        elif key == "y":
            out[OTHER], out[SHARE] = partner, torch.full(value.shape[:1], share, device=value.device)
    return out


class Mixed(Changed):
    """`base` with the examples of each batch mixed in pairs."""

    mixes = True

    def __init__(self, base: Source, *, alpha: float, seed: int) -> None:
        super().__init__(base)
        self.alpha, self.seed = alpha, seed

    def changed(self, batch: Batch, step: int) -> Batch:
        """The batch, mixed.

        Raises:
            Conflict: an input holds no numbers that could be mixed.
        """
        _require_numbers(batch, self.inputs)
        share, partners = mixing(size(batch), self.alpha, seed=self.seed, step=step)
        return mixed(batch, share, partners)


def _require_numbers(batch: Mapping[str, Tensor], inputs: Mapping[str, str]) -> None:
    whole = [name for name in inputs if name in batch and not batch[name].is_floating_point()]
    plain = [name for name in whole if is_plain(name)]
    if plain:
        raise Conflict(
            f"MixUp mixes pictures, tables and vectors, but the batches hold whole numbers under {', '.join(plain)}, such as "
            "the tokens of a text; drop MixUp, or train on embedded texts"
        )


class MixUp(Technique):
    """Trains on mixtures of two examples, `share` of the one and 1 - `share` of the other, towards both labels in these shares.

    Zhang et al., 2018, arXiv:1710.09412, eq. 1 and section 2: the share is drawn from Beta(alpha, alpha) once for each batch,
    and partners come from the same batch. Draws are a function of (seed, step). For class ids the two cross-entropies are
    weighed, which is the cross-entropy of the mixed label; multi-label targets, numbers and a teacher's logits are mixed.

    Use it when pictures, tables or embedded texts have few or noisy labels and the model is too sure of itself.
    Not when something between two examples means nothing: tokens are refused, as are rollouts and tasks. What is mixed looks
    new each time, so `CachePrefix` is refused beside it.

    Attributes:
        alpha: small values keep most mixtures close to one of the two examples; 0 turns it off.
        seed: decides shares and partners, with the step.

    Example:
        ```yaml
        techniques:
          - MixUp: {alpha: 0.2}
        ```
    """

    alpha: float = Field(default=0.2, ge=0)
    seed: int = 0

    wraps: ClassVar[frozenset[str]] = frozenset({"source", "objective"})
    reads: ClassVar[frozenset[str]] = frozenset({""})

    def apply(self, recipe: Recipe) -> Recipe:
        """Mix the batches of every stage."""
        return recipe if self.alpha == 0 else each_stage(recipe, self._mixing)

    def _mixing(self, stage: Stage[Any]) -> Stage[Any]:
        _require_two_labels(stage, "MixUp")
        if "input_ids" in stage.source.inputs:
            raise Conflict(
                f"MixUp mixes pictures, tables and vectors, but stage {stage.name!r} reads the tokens of texts; drop MixUp, or "
                "train on embedded texts"
            )
        return replace(stage, source=Mixed(stage.source, alpha=self.alpha, seed=self.seed))


def _require_two_labels(stage: Stage[Any], name: str) -> None:
    """A Conflict unless the objective can weigh two labels, and nothing else has mixed the examples."""
    innermost = _innermost(stage.objective)
    if innermost not in OBJECTIVES.values():
        called = getattr(innermost, "__name__", type(innermost).__name__)
        raise Conflict(
            f"{name}: the objective of stage {stage.name!r} must be a supervised one, which can weigh two labels, got {called}; "
            f"drop {name} there"
        )
    if any(getattr(layer, "mixes", False) for layer in layers(stage.source)):
        raise Conflict(
            "CutMix and MixUp both mix the examples of a batch, and an example has room for two labels; write "
            "`CutMix: {mixup_alpha: 0.2}` for batches that are mixed in the one or the other way"
        )


def _innermost(objective: Objective) -> object:
    """The objective that others are wrapped around."""
    found: object = objective
    while hasattr(found, "base"):
        found = found.base  # pyright: ignore[reportAttributeAccessIssue]
    return found


# ---- CutMix


@dataclass(frozen=True)
class Window:
    """A rectangle of a picture, in pixels."""

    top: int
    bottom: int
    left: int
    right: int

    def share_outside(self, height: int, width: int) -> float:
        """Exact share of a picture's area that lies outside."""
        return 1 - (self.bottom - self.top) * (self.right - self.left) / (height * width)


def cutting(count: int, size: tuple[int, int], alpha: float, *, seed: int, step: int) -> tuple[Window, np.ndarray]:
    """What is cut out of pictures of `size` (H, W), and the partners (N,) it is filled from: of (seed, step) alone.

    Yun et al., 2019, arXiv:1905.04899, eq. 2: sides are sqrt(1 - share) of the picture's about a centre drawn evenly, cut at
    the border.
    """
    draw = np.random.default_rng(mix(seed, step, _STREAM, 1))
    side = math.sqrt(1 - draw.beta(alpha, alpha))
    edges: list[tuple[int, int]] = []
    for length in size:
        half, centre = side * length / 2, draw.uniform(0, length)
        edges.append((max(0, round(centre - half)), min(length, round(centre + half))))
    return Window(*edges[0], *edges[1]), draw.permutation(count)


def pasted(batch: Batch, window: Window, partners: np.ndarray, key: str) -> Batch:
    """The batch with the window of each picture, and of its mask, filled from its partner's.

    Labels have the shares of the areas: class ids `y` stay beside those of the partners, other numbers are mixed.

    Raises:
        Conflict: the batch holds boxes.
    """
    share = window.share_outside(*batch[key].shape[-2:])

    def join(name: str, value: Tensor, partner: Tensor) -> Tensor:
        if name not in (key, MASK):
            return share * value + (1 - share) * partner
        out = value.clone()
        area = (..., slice(window.top, window.bottom), slice(window.left, window.right))
        out[area] = partner[area]
        return out

    return _shared(batch, share, partners, join)


class Cut(Changed):
    """`base` with a window of each picture filled from its partner's; or, in some batches, mixed on straight lines."""

    mixes = True

    def __init__(self, base: Source, spec: CutMix) -> None:
        super().__init__(base)
        self.spec = spec

    def changed(self, batch: Batch, step: int) -> Batch:
        """The batch, mixed in one of the two ways."""
        spec = self.spec
        key = picture_key(batch, self.inputs, name="CutMix")
        if spec.mixup_alpha and np.random.default_rng(mix(spec.seed, step, _STREAM, 2)).random() >= spec.switch:
            return mixed(batch, *mixing(len(batch[key]), spec.mixup_alpha, seed=spec.seed, step=step))
        sides = (batch[key].shape[-2], batch[key].shape[-1])
        return pasted(batch, *cutting(len(batch[key]), sides, spec.alpha, seed=spec.seed, step=step), key)


class CutMix(Technique):
    """Trains on pictures with a window pasted in from another one, towards both labels in the shares of their areas.

    Yun et al., 2019, arXiv:1905.04899, eq. 1 and 2: the share is drawn from Beta(alpha, alpha) once for each batch, partners
    come from the same batch, and the label's share is that of the area which is left once the window is cut at the border. A
    `mask` of the batch is pasted likewise. With `mixup_alpha` a batch is mixed as MixUp does instead with probability
    1 - `switch`, as timm does.

    Use it when pictures are trained on for many epochs and the network looks at one part of a thing only.
    Not when what decides the label is small: the window may hide it while the label still counts. What is mixed looks new each
    time, so `CachePrefix` is refused beside it.

    Attributes:
        alpha: 1 draws shares evenly, small values keep most pictures whole; 0 turns it off.
        mixup_alpha: that of MixUp; 0 cuts every batch.
        switch: share of the batches that are cut where `mixup_alpha` is not 0.
        seed: decides windows and partners, with the step.

    Example:
        ```yaml
        techniques:
          - CutMix: {alpha: 1.0, mixup_alpha: 0.2}
        ```
    """

    alpha: float = Field(default=1.0, ge=0)
    mixup_alpha: float = Field(default=0.0, ge=0)
    switch: float = Field(default=0.5, gt=0, lt=1)
    seed: int = 0

    wraps: ClassVar[frozenset[str]] = frozenset({"source", "objective"})
    reads: ClassVar[frozenset[str]] = frozenset({""})

    def apply(self, recipe: Recipe) -> Recipe:
        """Paste into the pictures of every stage."""
        return recipe if self.alpha == 0 else each_stage(recipe, self._cutting)

    def _cutting(self, stage: Stage[Any]) -> Stage[Any]:
        require_pictures(stage.source, name="CutMix")
        _require_two_labels(stage, "CutMix")
        return replace(stage, source=Cut(stage.source, self))
