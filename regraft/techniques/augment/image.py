"""ImageGeometry and ColorJitter: pictures moved and recoloured at random, within given ranges."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from regraft.core import Recipe, Technique
from regraft.data import colour
from regraft.data.changed import Pictures, redrawn
from regraft.data.geometry import affine, mirrored, warped


class ImageGeometry(Technique):
    """Mirrors, turns, shifts and scales pictures at random; masks (`mask`) and boxes (`boxes`) of a batch move along.

    Numbers are drawn evenly from each range for every picture, as a function of (seed, step, example): mirrored first, then
    scaled and turned about the centre, then shifted by whole pixels, in one interpolation by kornia. What comes in from outside
    is the reflection at the border, in the mask too.

    Use it when things may stand anywhere and at any angle within the ranges, and examples are few.
    Not when the change makes another class of it: a 6 turned by 180 degrees is a 9. `regraft check-augment` asks a trained model.
    What is changed looks new each time, so `CachePrefix` is refused beside it.

    Attributes:
        rotate: largest angle either way, in degrees.
        shift: largest shift down or right, as a share of height and width.
        scale: pictures are enlarged by 1 - scale to 1 + scale.
        flip: probability of mirroring left and right.
        flip_vertical: probability of mirroring top and bottom.
        seed: decides the draws, with step and example.

    Example:
        ```yaml
        techniques:
          - ImageGeometry: {rotate: 15, shift: 0.1, scale: 0.1, flip: 0.5}
        ```
    """

    rotate: float = Field(default=10.0, ge=0, le=180)
    shift: float = Field(default=0.1, ge=0, lt=1)
    scale: float = Field(default=0.1, ge=0, lt=1)
    flip: float = Field(default=0.0, ge=0, le=1)
    flip_vertical: float = Field(default=0.0, ge=0, le=1)
    seed: int = 0

    wraps: ClassVar[frozenset[str]] = frozenset({"source"})
    reads: ClassVar[frozenset[str]] = frozenset({""})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "inner"  # a teacher sees, and MixUp mixes, what it gives

    def apply(self, recipe: Recipe) -> Recipe:
        """Move the pictures of every stage."""
        return redrawn(recipe, self, seed=self.seed)

    @property
    def num_draws(self) -> int:
        """Uniform numbers for each picture: two for mirroring, angle, two for the shift, scale."""
        return 6 if self.rotate or self.shift or self.scale or self.flip or self.flip_vertical else 0

    def picture(self, pictures: Pictures, draws: Tensor) -> Pictures:
        """The pictures moved, for uniform numbers (N, 6) in [0, 1)."""
        if self.flip or self.flip_vertical:
            pictures = mirrored(pictures, across=draws[:, 0] < self.flip, down=draws[:, 1] < self.flip_vertical)
        if not (self.rotate or self.shift or self.scale):
            return pictures
        signed, size = 2 * draws[:, 2:] - 1, (pictures.pixels.shape[-2], pictures.pixels.shape[-1])
        matrix = affine(
            size=size, angle=self.rotate * signed[:, 0], shift=self.shift * signed[:, 1:3], scale=1 + self.scale * signed[:, 3]
        )  # fmt: skip
        return warped(pictures, matrix)


class ColorJitter(Technique):
    """Changes brightness, contrast, saturation and hue of pictures at random, one after the other in this order.

    Each factor is drawn evenly from 1 - range to 1 + range for every picture, as a function of (seed, step, example); hue is
    turned by at most `hue` of the colour circle either way. The operations are Pillow's, by kornia; grey pictures have neither
    saturation nor hue. Torchvision's transform of this name draws the order at random as well.

    Use it when pictures come from other cameras, at other times of day, or under other light than the training set.
    Not when the colour is the label, as with ripe fruit, or stained tissue whose stain is read.
    What is changed looks new each time, so `CachePrefix` is refused beside it.

    Attributes:
        brightness: values are multiplied by 1 - b to 1 + b.
        contrast: distances from the picture's mean are.
        saturation: distances from each pixel's grey are.
        hue: largest turn of the colour circle, 0.5 being the opposite colour.
        seed: decides the draws, with step and example.

    Example:
        ```yaml
        techniques:
          - ColorJitter: {brightness: 0.3, contrast: 0.3, saturation: 0.3, hue: 0.05}
        ```
    """

    brightness: float = Field(default=0.2, ge=0, le=1)
    contrast: float = Field(default=0.2, ge=0, le=1)
    saturation: float = Field(default=0.2, ge=0, le=1)
    hue: float = Field(default=0.02, ge=0, le=0.5)
    seed: int = 0

    wraps: ClassVar[frozenset[str]] = frozenset({"source"})
    reads: ClassVar[frozenset[str]] = frozenset({""})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "inner"  # a teacher sees, and MixUp mixes, what it gives

    def apply(self, recipe: Recipe) -> Recipe:
        """Recolour the pictures of every stage."""
        return redrawn(recipe, self, seed=self.seed)

    @property
    def num_draws(self) -> int:
        """Uniform numbers for each picture: brightness, contrast, saturation, hue."""
        return 4 if self.brightness or self.contrast or self.saturation or self.hue else 0

    def picture(self, pictures: Pictures, draws: Tensor) -> Pictures:
        """The pictures recoloured, for uniform numbers (N, 4) in [0, 1)."""
        pixels, signed = pictures.pixels, 2 * draws - 1
        if self.brightness:
            pixels = colour.brightness(pixels, 1 + self.brightness * signed[:, 0])
        if self.contrast:
            pixels = colour.contrast(pixels, 1 + self.contrast * signed[:, 1])
        if self.saturation:
            pixels = colour.saturation(pixels, 1 + self.saturation * signed[:, 2])
        if self.hue:
            pixels = colour.hue(pixels, self.hue * signed[:, 3])
        return replace(pictures, pixels=pixels)
