"""Colours of pictures (N, C, H, W) in [0, 1] as functions of given factors, one for each picture; equal to Pillow's operations.

Grey pictures have one channel; hue and saturation leave them as they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    """Pixels times `factor` (N,), cut at 1; 0 is black, 1 changes nothing."""
    return (pixels * _each(factor)).clamp(0, 1)


def contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    """Distances from the mean grey of each picture times `factor` (N,), cut at 0 and 1."""
    from kornia.enhance import adjust_contrast_with_mean_subtraction

    return adjust_contrast_with_mean_subtraction(pixels, factor)


def saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    """Distances from the grey of each pixel times `factor` (N,), cut at 0 and 1; 0 is a grey picture."""
    from kornia.enhance import adjust_saturation_with_gray_subtraction

    return adjust_saturation_with_gray_subtraction(pixels, factor)


def hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """Hues turned by `turn` (N,) of the colour circle, so 1 is all the way round; grey stays grey."""
    from kornia.enhance import adjust_hue

    return pixels if pixels.shape[1] != 3 else adjust_hue(pixels, turn * 2 * math.pi).clamp(0, 1)


def sharpness(pixels: Tensor, factor: Tensor) -> Tensor:
    """Distances from a smoothed copy times `factor` (N,), cut at 0 and 1. Pictures narrower than 3 pixels stay as they are."""
    from kornia.enhance import sharpness as sharpened

    return pixels if min(pixels.shape[-2:]) < 3 else sharpened(pixels, factor)


def posterize(pixels: Tensor, bits: Tensor) -> Tensor:
    """The `bits` (N,) highest of the 8 bits of each value; the others become 0."""
    step = _each(2.0 ** (8 - bits.round()))
    return ((pixels * 255).round() / step).floor() * step / 255


def solarize(pixels: Tensor, threshold: Tensor) -> Tensor:
    """Values from `threshold` (N,) on are turned into 1 - value."""
    return torch.where(pixels >= _each(threshold), 1 - pixels, pixels)


def autocontrast(pixels: Tensor) -> Tensor:
    """Each channel of each picture stretched so that its least value is 0 and its largest 1; a flat channel stays."""
    low, high = pixels.amin((-2, -1), keepdim=True), pixels.amax((-2, -1), keepdim=True)
    width = high - low
    return torch.where(width > 0, (pixels - low) / torch.where(width > 0, width, 1), pixels)


def equalize(pixels: Tensor) -> Tensor:
    """Each channel with its histogram of 256 levels made as even as a table of levels can make it."""
    from kornia.enhance import equalize as equalized

    return equalized((pixels * 255).round().clamp(0, 255) / 255)


def _each(factor: Tensor) -> Tensor:
    return factor[:, None, None, None]
