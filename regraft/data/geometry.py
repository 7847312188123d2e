"""Pictures turned, mirrored, shifted and scaled with their masks and boxes, by kornia's warp, as functions of given numbers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from regraft.data.changed import Pictures


def mirrored(pictures: Pictures, *, across: Tensor, down: Tensor) -> Pictures:
    """Pictures mirrored left and right where `across` (N,) bool, and top and bottom where `down` (N,) bool; exact."""
    height, width = pictures.pixels.shape[-2:]
    for flips, side, first in ((across, -1, 0), (down, -2, 1)):
        mask, boxes = pictures.mask, pictures.boxes
        if mask is not None:
            mask = torch.where(flips.view(-1, *[1] * (mask.ndim - 1)), mask.flip(side), mask)
        if boxes is not None:
            size = width if side == -1 else height
            turned = boxes.clone()
            turned[..., first], turned[..., first + 2] = size - boxes[..., first + 2], size - boxes[..., first]
            boxes = torch.where(flips[:, None, None], turned, boxes)
        pixels = torch.where(flips[:, None, None, None], pictures.pixels.flip(side), pictures.pixels)
        pictures = Pictures(pixels, mask, boxes)
    return pictures


def affine(*, size: tuple[int, int], angle: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Matrices (N, 2, 3) from a pixel's old place (x, y) to its new one: scaled and turned about the centre, then shifted.

    Args:
        size: height and width, H and W.
        angle: (N,) degrees counter-clockwise, as seen.
        shift: (N, 2) right and down, as shares of W and H, rounded to whole pixels.
        scale: (N,) above 1 enlarges what is shown.
    """
    from kornia.geometry.transform import get_rotation_matrix2d

    height, width = size
    centre = angle.new_tensor([(width - 1) / 2, (height - 1) / 2]).expand(len(angle), 2)
    matrix = get_rotation_matrix2d(centre, angle, scale[:, None].expand(-1, 2))
    matrix[:, :, 2] += (shift * shift.new_tensor([width, height])).round()
    return matrix


def sheared(*, size: tuple[int, int], across: Tensor, down: Tensor) -> Tensor:
    """Matrices (N, 2, 3) that slant pictures of `size` (H, W) about the centre by `across` and `down` (N,) pixels a pixel."""
    height, width = size
    x, y = (width - 1) / 2, (height - 1) / 2
    one = torch.ones_like(across)
    return torch.stack([torch.stack([one, across, -across * y], 1), torch.stack([down, one, -down * x], 1)], 1)


def warped(pictures: Pictures, matrix: Tensor) -> Pictures:
    """Pictures with every pixel moved by `matrix` (N, 2, 3); what comes in from outside is the reflection at the border.

    Pixels are interpolated bilinearly and masks take the nearest value. A box becomes the smallest one around its four moved
    corners, cut at the border; one that left the picture has no area.
    """
    from kornia.geometry.transform import warp_affine

    size = (pictures.pixels.shape[-2], pictures.pixels.shape[-1])
    moved = warp_affine(pictures.pixels, matrix.to(pictures.pixels.dtype), size, padding_mode="reflection")
    out = replace(pictures, pixels=moved.clamp(0, 1))
    if pictures.mask is not None:
        out = replace(out, mask=_warped_mask(pictures.mask, matrix, size))
    return out if pictures.boxes is None else replace(out, boxes=moved_boxes(pictures.boxes, matrix, size))


def _warped_mask(mask: Tensor, matrix: Tensor, size: tuple[int, int]) -> Tensor:
    from kornia.geometry.transform import warp_affine

    planes = mask.double().view(len(mask), -1, *mask.shape[-2:])  # class ids of any size keep their bits
    moved = warp_affine(planes, matrix.double(), size, mode="nearest", padding_mode="reflection")
    return moved.view(mask.shape).to(mask.dtype)


def moved_boxes(boxes: Tensor, matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (N, K, 4) around the moved corners of the old ones, cut at the borders of a picture of `size` (H, W)."""
    left, top, right, bottom = boxes.to(matrix.dtype).unbind(-1)
    corners = torch.stack([left, top, right, top, left, bottom, right, bottom], -1).unflatten(-1, (4, 2))
    # a matrix moves the centres of pixels, which lie half a pixel from the edges that a box counts from
    places = torch.einsum("nij,nkcj->nkci", matrix[:, :, :2], corners - 0.5) + matrix[:, None, None, :, 2] + 0.5
    most = places.new_tensor([size[1], size[0]])
    low, high = places.amin(2).clamp(min=0).minimum(most), places.amax(2).clamp(min=0).minimum(most)
    moved = torch.cat([low, high], -1)
    return (moved if boxes.is_floating_point() else moved.round()).to(boxes.dtype)
