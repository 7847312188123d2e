"""Batch normalisation, what it depends on, and what takes its place where batches are small."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from toy import Tensors, adam, recipe, stage

from regraft.core import compile, fit
from regraft.core.forward import forward
from regraft.core.seeding import generator
from regraft.errors import Conflict
from regraft.layers.group_norm import GroupedNorm, batch_norms, describe, groups_for
from regraft.models.networks import MLP, ConvNet
from regraft.models.save import load_model, save_model
from regraft.techniques.peft.lora import LoRA
from regraft.techniques.stability.group_norm import GroupNorm


def pictures(n=192, *, seed=0, classes=4):
    """Maps (n, 3, 8, 8) with a bright patch whose corner is the class, in noise and at brightnesses that differ tenfold."""
    g = generator(seed)
    x, y = 0.7 * torch.randn(n, 3, 8, 8, generator=g), torch.randint(classes, (n,), generator=g)
    for row, corner in enumerate(y.tolist()):
        top, left = divmod(corner, 2)
        x[row, :, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4] += 1.0
    return {"x": x * (1.5 * torch.randn(n, 1, 1, 1, generator=g)).exp(), "y": y}


def convnet(seed=0):
    return ConvNet(width=8, dropout=0.0).build((3, 8, 8), 4, seed=seed)


def converted(model, groups=8):
    return compile(recipe(stage(model, data=pictures())), [GroupNorm(groups=groups)]).model


@pytest.mark.inventory("batchnorm", by="models.main.network: ConvNet")
def test_batch_normalisation_uses_the_batch_in_training_and_running_statistics_in_use():
    norm, x = nn.BatchNorm2d(5), 3 * torch.randn(16, 5, 4, 4) + 2
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    by_hand = (x - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
    by_hand = by_hand * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm.train()(x), by_hand, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_mean, 0.1 * mean, rtol=1e-5, atol=1e-6)
    before = norm.running_mean.clone()
    first = norm.eval()(x)
    torch.testing.assert_close(norm(x[:1]), first[:1])
    assert torch.equal(norm.running_mean, before), "eval mode moved the statistics"
    assert not torch.allclose(norm.train()(x)[:1], norm(x[:8])[:1], atol=1e-3), "training does not depend on the batch"


@pytest.mark.inventory("layernorm", by="models.main.network: MLP")
@pytest.mark.inventory("groupnorm", by="technique GroupNorm")
def test_layer_and_group_normalisation_of_an_example_do_not_depend_on_its_batch():
    x = torch.randn(16, 8)
    layer, group = nn.LayerNorm(8), GroupedNorm(nn.BatchNorm1d(8), 2)
    for norm, batch in ((layer, x), (group, x), (MLP(width=16, depth=2, dropout=0.0).build((8,), 4), x)):
        torch.testing.assert_close(norm.train()(batch)[3:4], norm(batch[3:4]), rtol=1e-5, atol=1e-6)
        assert torch.equal(norm.eval()(batch), norm.train()(batch)), "training and use differ"
    mean, deviation = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True).add(layer.eps).sqrt()
    torch.testing.assert_close(layer(x), (x - mean) / deviation, rtol=1e-5, atol=1e-6)


@pytest.mark.inventory("groupnorm", by="technique GroupNorm")
def test_the_conversion_keeps_names_shapes_and_affine_weights_and_gives_group_norm():
    plain = convnet()
    with torch.no_grad():
        for norm in batch_norms(plain).values():
            norm.weight.uniform_(0.5, 2)
            norm.bias.uniform_(-1, 1)
    made = converted(plain)
    assert not batch_norms(made)
    assert {n: t.shape for n, t in made.state_dict().items()} == {n: t.shape for n, t in plain.state_dict().items()}
    assert all(torch.equal(t, plain.state_dict()[n]) for n, t in made.state_dict().items())
    x = torch.randn(4, 3, 8, 8)
    assert made(x).shape == plain(x).shape
    for name, norm in batch_norms(plain).items():
        there = made.get_submodule(name)
        x = torch.randn(3, norm.num_features, 4, 4)
        expected = nn.functional.group_norm(x, there.num_groups, norm.weight, norm.bias, norm.eps)
        assert torch.equal(there(x), expected)
    assert [groups_for(c, 32) for c in (3, 8, 12, 24, 64, 256)] == [1, 2, 3, 6, 16, 32]
    with pytest.raises(Conflict, match="has no batch normalisation to exchange"):
        compile(recipe(stage()), [GroupNorm()])


@pytest.mark.inventory("groupnorm", by="technique GroupNorm")
def test_networks_of_transformers_are_converted_and_low_rank_changes_fit_beside_it():
    from transformers import MobileNetV2Config, MobileNetV2Model, ResNetConfig, ResNetModel

    resnet = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"))
    mobile = MobileNetV2Model(MobileNetV2Config(depth_multiplier=0.25, image_size=32))
    for model in (resnet, mobile):
        source = Tensors(
            {"pixel_values": torch.randn(8, 3, 32, 32), "y": torch.zeros(8, dtype=torch.long)}, batch_size=4
        )
        model.inputs = ("pixel_values",)
        made = compile(recipe(stage(model, source=source)), [GroupNorm()]).model
        x = torch.randn(2, 3, 32, 32)
        ours, theirs = made.eval()(pixel_values=x), model.eval()(pixel_values=x)
        assert ours.last_hidden_state.shape == theirs.last_hidden_state.shape
        assert made.state_dict().keys() == model.state_dict().keys()
        assert not batch_norms(made)
    both = compile(recipe(stage(convnet(), data=pictures())), [GroupNorm(), LoRA(rank=1)]).model
    assert not batch_norms(both)


@pytest.mark.inventory("groupnorm", by="technique GroupNorm")
def test_a_saved_network_comes_back_with_group_normalisation(tmp_path):
    made = converted(convnet())
    fit(recipe(stage(made, steps=3, data=pictures())))
    folder = save_model(made, tmp_path / "model", preprocessor_json={}, labels=["a", "b", "c", "d"], task="multiclass")
    again, info = load_model(folder)
    assert [s["kind"] for s in info["surgery"]] == ["group_norm"]
    assert describe(again) == describe(made)
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(again(x), made.eval()(x))
    assert load_file(folder / "model.safetensors").keys() == convnet().state_dict().keys()


@pytest.mark.inventory("groupnorm", by="technique GroupNorm")
def test_with_two_examples_a_batch_it_is_not_worse_than_batch_normalisation():
    """Mean accuracy on new pictures over three seeds, both trained the same way on batches of 2."""
    test = pictures(400, seed=9)
    found = {"batch": [], "group": []}
    for seed in range(3):
        for name, techniques in (("batch", []), ("group", [GroupNorm(groups=4)])):
            source = Tensors(pictures(seed=seed), batch_size=2, seed=seed)
            made = compile(recipe(stage(convnet(seed), steps=60, source=source, update=adam(3e-3))), techniques)
            fit(made, seed=seed)
            with torch.no_grad():
                right = forward(made.model.eval(), test).argmax(1) == test["y"]
            found[name].append(float(right.float().mean()))
    assert sum(found["group"]) >= sum(found["batch"]), found
    assert min(found["group"]) > 0.5, found
