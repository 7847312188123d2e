"""Image augmentation as frozen options and pure functions of (pixels, uniform numbers), in plain PyTorch.

Every random choice is a function of uniform numbers that are handed in, so the same numbers give the same picture: drawn from a
generator for ordinary training, or from (seed, example, view) where an example must look the same each time it is drawn.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from regraft.config.spec import Spec

NUM_DRAWS = 6  # uniform numbers per example: flip, shift down, shift right, angle, brightness, contrast


class Augment(Spec):
    """Random flip, shift, rotation, brightness and contrast of a batch of images; all off by default.

    Called with pixels (N, C, H, W), uint8 or floating point, and a generator it returns the same shape and dtype.
    """

    flip: float = Field(0.0, ge=0, le=1)  # probability of mirroring left and right
    translate: float = Field(0.0, ge=0, lt=1)  # largest shift, as a share of height and width
    rotate: float = Field(0.0, ge=0, le=180)  # largest rotation either way, in degrees
    brightness: float = Field(0.0, ge=0, lt=1)  # pixels are multiplied by 1 - b to 1 + b
    contrast: float = Field(0.0, ge=0, lt=1)  # distances from the image's mean are multiplied by 1 - c to 1 + c

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Augmented pixels, with fresh numbers from the generator."""
        return self.apply(pixels, torch.rand((len(pixels), NUM_DRAWS), generator=generator))

    def apply(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """Augmented pixels (N, C, H, W) for uniform numbers `draws` (N, 6) in [0, 1)."""
        if pixels.ndim != 4 or draws.shape != (len(pixels), NUM_DRAWS):
            raise ValueError(
                f"pixels must be (N, C, H, W) and draws (N, {NUM_DRAWS}), got {tuple(pixels.shape)}, {tuple(draws.shape)}"
            )
        draws = draws.to(pixels.device)
        flips, shifts, signed = draws[:, 0] < self.flip, 2 * draws[:, 1:3] - 1, 2 * draws[:, 3:] - 1
        out = horizontal_flip(pixels, flips) if self.flip else pixels
        if self.translate or self.rotate:
            out = moved(out, angle=signed[:, 0] * math.radians(self.rotate), shift=shifts * self.translate)
        if self.brightness:
            out = brightened(out, 1 + self.brightness * signed[:, 1])
        if self.contrast:
            out = contrasted(out, 1 + self.contrast * signed[:, 2])
        return out


def horizontal_flip(pixels: Tensor, flips: Tensor) -> Tensor:
    """Images (N, C, H, W), mirrored left and right where `flips` (N,) bool says so."""
    return torch.where(flips[:, None, None, None], pixels.flip(-1), pixels)


def moved(pixels: Tensor, *, angle: Tensor, shift: Tensor) -> Tensor:
    """Images (N, C, H, W) turned counter-clockwise about the centre, then shifted; what comes in from outside is reflected.

    Args:
        pixels: uint8 or floating point.
        angle: (N,) radians.
        shift: (N, 2) down and right, as a share of height and width. Whole pixels without rotation are moved exactly.
    """
    n, _, height, width = pixels.shape
    down, right = (shift[:, 0] * height).round(), (shift[:, 1] * width).round()
    cos, sin = angle.cos(), angle.sin()
    # grid_sample works in [-1, 1] on both axes: a rotation of pixels needs the aspect ratio on the mixed terms
    x, y = -2 * right / width, -2 * down / height
    theta = torch.stack(
        [
            torch.stack([cos, -sin * height / width, cos * x - sin * y * height / width], 1),
            torch.stack([sin * width / height, cos, sin * x * width / height + cos * y], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta.float(), [n, 1, height, width], align_corners=False)
    out = F.grid_sample(pixels.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return _like(out, pixels)


def brightened(pixels: Tensor, factor: Tensor) -> Tensor:
    """Images (N, C, H, W) times `factor` (N,), clipped to [0, 255] if they are uint8."""
    return _like(pixels.float() * factor[:, None, None, None], pixels)


def contrasted(pixels: Tensor, factor: Tensor) -> Tensor:
    """Images (N, C, H, W) with distances from each image's mean times `factor` (N,), clipped to [0, 255] if they are uint8."""
    values = pixels.float()
    mean = values.mean(dim=(1, 2, 3), keepdim=True)
    return _like(mean + (values - mean) * factor[:, None, None, None], pixels)


def uniforms(seed: int, ids: np.ndarray, num: int = NUM_DRAWS) -> Tensor:
    """Uniform numbers in [0, 1), (N, num) float32: a function of the seed and of each id alone, whatever batch it is in.

    Counter-based: SplitMix64 (Steele et al., 2014, OOPSLA) of (seed, id, column).
    """
    counter = _scrambled(np.asarray([seed], dtype=np.int64).view(np.uint64)) ^ ids.astype(np.uint64)
    cells = _scrambled(counter)[:, None] + np.arange(1, num + 1, dtype=np.uint64)
    return torch.from_numpy(((_scrambled(cells) >> np.uint64(40)) * np.float64(2.0**-24)).astype(np.float32))


def _scrambled(value: np.ndarray) -> np.ndarray:
    """SplitMix64's output function on uint64, which wraps around."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _like(values: Tensor, pixels: Tensor) -> Tensor:
    """Float values in the dtype of `pixels`, rounded and clipped for uint8."""
    return values.round().clamp(0, 255).to(torch.uint8) if pixels.dtype == torch.uint8 else values.to(pixels.dtype)
