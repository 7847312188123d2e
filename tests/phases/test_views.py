"""Augmented images in a fixed number of views can be stored: losses are those without a store."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regraft.config.recipe import CandidateSpec, TrainSpec
from regraft.core import fit
from regraft.data.images import EncodedImages
from regraft.errors import ConfigError, Conflict
from regraft.models.backbone import plain_backbone
from regraft.models.graft import Graft
from regraft.phases.training import supervised_recipe
from regraft.techniques.transfer.cache_prefix import CachePrefix
from regraft.techniques.transfer.last_k import LastK


def images() -> EncodedImages:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 3, 8, 8), dtype=np.uint8)
    return EncodedImages(pixels, np.full((24, 2), 8, np.int32), "x", (1 / 255,) * 3, (-0.5,) * 3)


def network() -> Graft:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(3 if n == 0 else 8, 8, 3, padding=1) for n in range(4)]
        module = torch.nn.Sequential(*layers)
    backbone = plain_backbone(module, images().collate(np.arange(2))["x"], modality="image")
    return Graft(backbone, depths=(4,), pools=("mean",), num_outputs=3)


def losses(*techniques, **options) -> list[float]:
    train = TrainSpec(batch_size=8, augment=True, **options)
    spec = CandidateSpec(name="last-k", steps=15, techniques=techniques, train=train)
    recipe = supervised_recipe(network(), images(), torch.arange(24) % 3, task="multiclass", candidate=spec, seed=0)
    return [record["loss"] for record in fit(recipe, log_every=1).history]


def test_a_store_of_fixed_views_gives_the_losses_without_it():
    plain = losses(LastK(blocks=1), views=3)
    assert losses(LastK(blocks=1), CachePrefix(), views=3) == pytest.approx(plain, rel=1e-6)
    assert losses(LastK(blocks=1), views=2) != plain


def test_looks_that_are_always_new_cannot_be_stored():
    with pytest.raises(Conflict, match="use a fixed number of augmented views"):
        losses(LastK(blocks=1), CachePrefix())


def test_views_without_augmentation_are_an_error():
    spec = CandidateSpec(name="full", steps=1, train=TrainSpec(views=3))
    with pytest.raises(ConfigError, match=r"it needs train\.augment: true"):
        supervised_recipe(network(), images(), torch.arange(24) % 3, task="multiclass", candidate=spec, seed=0)
