"""The memory format of batches and feature maps, and the numbers that do not change with it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy import Tensors, mlp, recipe, stage

from regraft.core import compile, fit
from regraft.core.checkpoint import Checkpointer, load
from regraft.core.seeding import generator
from regraft.errors import Conflict
from regraft.techniques.speed.channels_last import ChannelsLast, channels_last


def images():
    g = generator(3)
    return {"x": torch.randn(64, 3, 8, 8, generator=g), "y": torch.randint(4, (64,), generator=g)}


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
        )  # fmt: skip


def trained(techniques, **options):
    chosen = stage(model=network(), source=Tensors(images(), batch_size=16), steps=6)
    fit(compile(recipe(chosen), techniques), **options)
    return chosen.model


def test_values_and_shapes_stay_and_only_images_are_laid_out_anew():
    batch = {"x": torch.randn(2, 3, 4, 5), "y": torch.tensor([0, 1]), "ids": torch.ones(2, 3, 4, 5, dtype=torch.int64)}
    out = channels_last(batch)
    assert all(torch.equal(out[key], value) for key, value in batch.items())
    assert out["x"].stride() == (60, 1, 15, 3)
    assert out["y"] is batch["y"]
    assert out["ids"] is batch["ids"]


def test_feature_maps_follow_and_weights_keep_their_format():
    seen = []
    chosen = stage(model=network(), source=Tensors(images(), batch_size=16), steps=1)
    chosen.model[3].register_forward_pre_hook(lambda _, args: seen.append(args[0].stride()))
    fit(compile(recipe(chosen), [ChannelsLast()]))
    assert [strides[1] for strides in seen] == [1]
    assert all(p.is_contiguous() for p in chosen.model.parameters())


def test_the_trained_weights_are_those_without_it_up_to_rounding():
    for one, two in zip(trained([]).parameters(), trained([ChannelsLast()]).parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    whole = trained([ChannelsLast()], hooks=[Checkpointer(tmp_path / "a", every=2)])
    state = load(tmp_path / "a" / "step-00000002")
    again = trained([ChannelsLast()], hooks=[Checkpointer(tmp_path / "b", every=2)], resume=state)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_network_without_convolutions_is_refused():
    with pytest.raises(Conflict, match="ChannelsLast: the Sequential of stage 'toy' has no 2-d convolution"):
        compile(recipe(stage(model=mlp())), [ChannelsLast()])
