"""Augmentation is worth examples: 200 digits that are shifted in training do better on shifted ones than 400 that are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from toy import mlp, recipe, stage

from regraft.core import compile, fit
from regraft.data.images import EncodedImages
from regraft.data.sources import Examples
from regraft.techniques.augment.image import ImageGeometry

SHIFT = ImageGeometry(rotate=0, shift=0.125, scale=0)  # by at most one of eight pixels


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Pictures (1797, 1, 8, 8) uint8 and their classes."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return (x[order] * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8), y[order].astype(np.int64)


def trained(rows: int, *techniques, seed: int) -> torch.nn.Module:
    pixels, y = digits()
    encoded = EncodedImages(pixels[:rows], np.full((rows, 2), 8), "x", (1 / 255,), (0.0,))
    source = Examples(encoded, y[:rows], batch_size=32, seed=seed)
    model = torch.nn.Sequential(torch.nn.Flatten(), *mlp(dim=64, width=64, classes=10, seed=seed))
    fit(compile(recipe(stage(model=model, source=source, steps=500)), techniques))
    return model


def accuracy(model: torch.nn.Module, *, shifted: bool) -> float:
    """On rows that no model has seen, as they are or moved by one pixel in each of the four directions."""
    pixels, y = digits()
    x, moves = torch.from_numpy(pixels[900:]).float() / 255, [(0, 0)]
    if shifted:
        moves = [(1, 0), (-1, 0), (0, 1), (0, -1)]
    with torch.no_grad():
        right = [model(x.roll(move, (2, 3))).argmax(1) == torch.from_numpy(y[900:]) for move in moves]
    return float(torch.stack(right).float().mean())


@pytest.mark.inventory("effective-sample", by="technique ImageGeometry")
def test_shifted_training_digits_do_better_on_shifted_ones_than_twice_as_many_unshifted_ones():
    lost = []
    for seed in range(3):
        few, many = trained(200, seed=seed), trained(400, seed=seed)
        augmented = trained(200, SHIFT, seed=seed)
        robust, plain, twice = (accuracy(model, shifted=True) for model in (augmented, few, many))
        assert robust > plain + 0.1, (robust, plain)
        assert robust > twice + 0.05, (robust, twice)
        lost.append(accuracy(few, shifted=False) - accuracy(augmented, shifted=False))
    assert sum(lost) / len(lost) < 0.05, lost  # on digits in their place, which it was not made for
