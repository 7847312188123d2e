from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from regraft.errors import ModelError
from regraft.models.graft import Graft
from regraft.models.heads import floored, head_input, head_of, replace_head, standardisation
from regraft.models.networks import MLP, ConvNet, GenerativePair
from regraft.models.pooling import masked_max, masked_mean, pooled


def test_masked_pooling_equals_numpy_over_the_real_tokens_and_is_zero_without_any():
    tokens = torch.randn(4, 6, 3, dtype=torch.bfloat16)
    mask = torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0], [0, 1, 0, 1, 0, 0], [0] * 6])
    wide = tokens.float().numpy()
    for row in range(3):
        real = wide[row][mask[row].numpy() == 1]
        np.testing.assert_allclose(masked_mean(tokens, mask)[row].numpy(), real.mean(0), atol=1e-6)
        np.testing.assert_array_equal(masked_max(tokens, mask)[row].numpy(), real.max(0))
    assert not masked_mean(tokens, mask)[3].any()
    assert not masked_max(tokens, mask)[3].any()


def test_grid_holds_the_means_of_the_four_quarters():
    maps = torch.randn(2, 3, 4, 4)
    quarters = maps.reshape(2, 3, 2, 2, 2, 2).mean(dim=(3, 5)).flatten(1)
    assert torch.allclose(pooled(maps, "grid"), quarters, atol=1e-6)
    with pytest.raises(ModelError, match="map outputs cannot be pooled by 'grit'; did you mean 'grid'"):
        pooled(maps, "grit")


def test_folded_head_on_raw_features_equals_the_head_on_standardised_ones(tiny):
    backbone = tiny("Bert")
    graft = Graft(backbone, depths=[1, 3], pools=["mean", "max"], num_outputs=3).eval()
    features = graft.features(**backbone.example).detach()
    mean, deviation = standardisation(torch.cat([features, features + torch.randn_like(features)]))
    weight, bias = torch.randn(3, features.shape[1]), torch.randn(3)
    graft.set_head(weight, bias, mean=mean, deviation=deviation)
    want = ((features.double() - mean) / deviation) @ weight.double().T + bias
    assert torch.allclose(graft(**backbone.example).double(), want, atol=1e-4)
    with pytest.raises(ModelError, match="must be above 0"):
        graft.set_head(weight, bias, deviation=torch.zeros(len(mean)))


def test_features_that_never_vary_get_a_floor_that_keeps_them_from_exploding():
    deviation = floored(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert torch.allclose(deviation, torch.tensor([0.1 * 3.5**0.5, 1.0, 2.0, 3.0]))
    assert torch.equal(floored(torch.zeros(3)), torch.ones(3))


def test_graft_survives_copies_pickles_functional_calls_and_autocast(tiny):
    backbone = tiny("ViT")
    graft = Graft(backbone, depths=[0, 4], pools=["mean", "first"], num_outputs=3).eval()
    batch = dict(backbone.example)
    want = graft(**batch)
    for other in (copy.deepcopy(graft), pickle.loads(pickle.dumps(graft))):
        with torch.no_grad():
            for parameter in graft.parameters():
                parameter.add_(1.0)
        assert torch.equal(other(**batch), want)  # reads its own backbone, not the original's
        with torch.no_grad():
            graft.load_state_dict(other.state_dict())
    doubled = {name: 2 * value for name, value in graft.named_parameters()}
    assert not torch.equal(functional_call(graft, doubled, kwargs=batch), want)
    assert torch.equal(graft(**batch), want)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(graft.features(**batch), graft.features(**batch))
    assert not any(module._forward_hooks for module in graft.modules())


def test_all_features_of_one_pass_equal_the_features_of_each_graft(tiny):
    backbone = tiny("ResNet")
    whole = Graft(backbone, depths=[1], pools=["mean"], num_outputs=2)
    every = whole.all_features(**backbone.example)
    assert len(every) == 3 * len(backbone.boundaries())
    for (depth, pool), features in list(every.items())[::4]:
        single = Graft(backbone, depths=[depth], pools=[pool], num_outputs=2)
        assert torch.equal(single.features(**backbone.example), features)
    with pytest.raises(ModelError, match="has the depths 0 to 6, got 9"):
        Graft(backbone, depths=[9], pools=["mean"], num_outputs=2)


def test_head_is_replaced_in_place_and_its_input_is_what_enters_it():
    model = MLP(width=8, dropout=0).build((4,), 3)
    replace_head(model, 5)
    x = torch.randn(2, 4)
    assert torch.allclose(head_of(model)(head_input(model, {"x": x})), model(x))
    assert model(x).shape == (2, 5)
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert replace_head(conv, 2)(torch.randn(1, 3, 8, 8)).shape == (1, 2)
    with pytest.raises(ModelError, match=r"no nn\.Linear or 1x1"):
        replace_head(nn.Sequential(nn.ReLU()), 2)


@pytest.mark.parametrize("spec", [MLP(width=8), ConvNet(width=4), GenerativePair(width=8)])
def test_weights_of_a_network_are_a_function_of_the_seed_and_leave_the_global_generator_alone(spec):
    shape = (1, 8, 8)
    state = torch.get_rng_state()
    first, same, other = (list(spec.build(shape, 3, seed=seed).parameters()) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first[0], other[0])


def test_players_of_a_pair_fit_each_other():
    pair = GenerativePair(latent=5, width=8).build((1, 8, 8), 1)
    assert pair.discriminator(pair.generator(torch.randn(3, pair.latent))).shape == (3, 1)
