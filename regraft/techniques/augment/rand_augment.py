"""RandAugment: a number of operations drawn from a list of fourteen, all at one magnitude."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from regraft.core import Recipe, Technique
from regraft.data import colour
from regraft.data.changed import Pictures, redrawn
from regraft.data.geometry import affine, sheared, warped

MOST = (
    10.0  # the largest magnitude: 30 degrees, a shear of 0.3, 0.45 of a side, a factor of 1 +- 0.9, 4 bits, threshold 0
)

Operation = Callable[[Pictures, Tensor, Tensor], Pictures]  # pictures, strength (N,) in [0, 1], sign (N,) of -1 and 1


def _colours(change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Operation:
    return lambda pictures, strength, sign: replace(pictures, pixels=change(pictures.pixels, strength, sign))


def _turned(pictures: Pictures, strength: Tensor, sign: Tensor) -> Pictures:
    zeros, one = torch.zeros_like(strength), torch.ones_like(strength)
    matrix = affine(size=_size(pictures), angle=30 * strength * sign, shift=torch.stack([zeros, zeros], 1), scale=one)
    return warped(pictures, matrix)


def _shifted(pictures: Pictures, strength: Tensor, sign: Tensor, *, axis: int) -> Pictures:
    shift = torch.zeros(len(strength), 2).to(strength)
    shift[:, axis] = 0.45 * strength * sign
    zeros, one = torch.zeros_like(strength), torch.ones_like(strength)
    return warped(pictures, affine(size=_size(pictures), angle=zeros, shift=shift, scale=one))


def _slanted(pictures: Pictures, strength: Tensor, sign: Tensor, *, axis: int) -> Pictures:
    zeros, slant = torch.zeros_like(strength), 0.3 * strength * sign
    across, down = (slant, zeros) if axis == 0 else (zeros, slant)
    return warped(pictures, sheared(size=_size(pictures), across=across, down=down))


def _size(pictures: Pictures) -> tuple[int, int]:
    return pictures.pixels.shape[-2], pictures.pixels.shape[-1]


OPERATIONS: dict[str, Operation] = {
    "identity": lambda pictures, strength, sign: pictures,
    "autocontrast": _colours(lambda pixels, strength, sign: colour.autocontrast(pixels)),
    "equalize": _colours(lambda pixels, strength, sign: colour.equalize(pixels)),
    "rotate": _turned,
    "solarize": _colours(lambda pixels, strength, sign: colour.solarize(pixels, 1 - strength)),
    "color": _colours(lambda pixels, strength, sign: colour.saturation(pixels, 1 + 0.9 * strength * sign)),
    "posterize": _colours(lambda pixels, strength, sign: colour.posterize(pixels, 8 - 4 * strength)),
    "contrast": _colours(lambda pixels, strength, sign: colour.contrast(pixels, 1 + 0.9 * strength * sign)),
    "brightness": _colours(lambda pixels, strength, sign: colour.brightness(pixels, 1 + 0.9 * strength * sign)),
    "sharpness": _colours(lambda pixels, strength, sign: colour.sharpness(pixels, 1 + 0.9 * strength * sign)),
    "shear-x": lambda pictures, strength, sign: _slanted(pictures, strength, sign, axis=0),
    "shear-y": lambda pictures, strength, sign: _slanted(pictures, strength, sign, axis=1),
    "translate-x": lambda pictures, strength, sign: _shifted(pictures, strength, sign, axis=0),
    "translate-y": lambda pictures, strength, sign: _shifted(pictures, strength, sign, axis=1),
}


def drawn_operations(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Which operations (N, number) and with which signs (N, number) of -1 and 1, for uniform numbers (N, 2 * number)."""
    which, signs = draws.chunk(2, dim=1)
    return (which * len(OPERATIONS)).long(), torch.where(signs < 0.5, -1.0, 1.0)


def randomly_augmented(pictures: Pictures, draws: Tensor, *, strength: float) -> Pictures:
    """The pictures after the drawn operations, one after the other. Cubuk et al., 2020, arXiv:1909.13719, section 3.

    Args:
        pictures: N of them.
        draws: (N, 2 * number) uniform numbers in [0, 1), see `drawn_operations`.
        strength: of every operation, in [0, 1].
    """
    operations, signs = drawn_operations(draws)
    for turn in range(operations.shape[1]):
        for index, operation in enumerate(OPERATIONS.values()):
            rows = (operations[:, turn] == index).nonzero()[:, 0]
            if len(rows):
                part = operation(_taken(pictures, rows), signs.new_full((len(rows),), strength), signs[rows, turn])
                pictures = _put(pictures, rows, part)
    return pictures


def _taken(pictures: Pictures, rows: Tensor) -> Pictures:
    mask, boxes = pictures.mask, pictures.boxes
    return Pictures(pictures.pixels[rows], None if mask is None else mask[rows], None if boxes is None else boxes[rows])


def _put(pictures: Pictures, rows: Tensor, part: Pictures) -> Pictures:
    def joined(whole: Tensor | None, some: Tensor | None) -> Tensor | None:
        return whole if whole is None or some is None else whole.index_copy(0, rows, some)

    pixels = pictures.pixels.index_copy(0, rows, part.pixels)
    return Pictures(pixels, joined(pictures.mask, part.mask), joined(pictures.boxes, part.boxes))


class RandAugment(Technique):
    """Changes every picture by `number` operations, drawn from fourteen, all at one `magnitude`; labels stay.

    Cubuk et al., 2020, arXiv:1909.13719, section 3 and its list of operations: identity, autocontrast, equalize, rotate,
    solarize, color, posterize, contrast, brightness, sharpness, shear and translate along both axes. They are drawn with
    replacement as a function of (seed, step, example), and so is the sign of those that have one. Masks and boxes of a batch
    move along; what comes in from outside is the reflection at the border, where the paper's code fills in grey.

    Use it when a network is trained for long on few pictures and no augmentation for them is known: two numbers are the search.
    Not on a handful of steps, for which the pictures become harder than they need be, and not where colour or place is the label.
    What is changed looks new each time, so `CachePrefix` is refused beside it.

    Attributes:
        number: operations for each picture, N in the paper; 0 turns it off.
        magnitude: from 0 to 10, M in the paper: at 10 a picture is turned by 30 degrees, sheared by 0.3, shifted by 0.45 of a
            side, and factors are 0.1 or 1.9.
        seed: decides the draws, with step and example.

    Example:
        ```yaml
        techniques:
          - RandAugment: {number: 2, magnitude: 5}
        ```
    """

    number: int = Field(default=2, ge=0, le=14)
    magnitude: float = Field(default=5.0, ge=0, le=MOST)
    seed: int = 0

    wraps: ClassVar[frozenset[str]] = frozenset({"source"})
    reads: ClassVar[frozenset[str]] = frozenset({""})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "inner"  # a teacher sees, and MixUp mixes, what it gives

    def apply(self, recipe: Recipe) -> Recipe:
        """Augment the pictures of every stage."""
        return redrawn(recipe, self, seed=self.seed)

    @property
    def num_draws(self) -> int:
        """Uniform numbers for each picture: an operation and a sign, `number` times."""
        return 2 * self.number

    def picture(self, pictures: Pictures, draws: Tensor) -> Pictures:
        """The pictures augmented, for uniform numbers (N, 2 * number) in [0, 1)."""
        return randomly_augmented(pictures, draws, strength=self.magnitude / MOST)
