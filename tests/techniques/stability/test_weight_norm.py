"""Weights as functions of others: what they are functions of, and that they are plain again when a model is saved."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from toy import adam, blobs, mlp, recipe, sgd, stage

from regraft.core import compile, fit
from regraft.core.train import advance, start
from regraft.errors import ConfigError
from regraft.layers.reparametrise import Spectral, folded, parametrised
from regraft.models.networks import MLP, GenerativePair
from regraft.models.save import load_model, save_model
from regraft.techniques.generative.gan import GAN
from regraft.techniques.stability.weight_norm import SpectralNorm, WeightNorm
from regraft.techniques.transfer.last_k import LastK


def made_with(technique, model, **options):
    return compile(recipe(stage(model, **options)), [technique])


@pytest.mark.inventory("weightnorm", by="technique WeightNorm")
def test_the_norm_of_each_outputs_weights_is_g_and_the_function_is_the_same_at_first():
    plain = mlp()
    made = made_with(WeightNorm(), plain, steps=20)
    x = torch.randn(16, 8)
    torch.testing.assert_close(made.model(x), plain(x), rtol=1e-5, atol=1e-6)
    assert set(parametrised(made.model)) == {"0", "2", "4"}
    before = {name: layer.parametrizations.weight.original0.clone() for name, layer in parametrised(made.model).items()}
    fit(made)
    for name, layer in parametrised(made.model).items():
        g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
        torch.testing.assert_close(layer.weight.norm(dim=1, keepdim=True), g.abs(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.weight, g * v / v.norm(dim=1, keepdim=True), rtol=1e-5, atol=1e-6)
        assert not torch.equal(g, before[name]), "the length does not train"
    assert "parametrizations" not in str(list(plain.state_dict())), "the given model was changed"


@pytest.mark.inventory("weightnorm", by="technique WeightNorm")
def test_a_saved_network_has_plain_weights_and_the_same_outputs(tmp_path):
    network = MLP(width=16, depth=2, dropout=0.0).build((8,), 4)
    made = made_with(WeightNorm(modules=("blocks", "head")), network, steps=5)
    fit(made)
    folder = save_model(made.model, tmp_path / "m", preprocessor_json={}, labels=list("abcd"), task="multiclass")
    again, info = load_model(folder)
    assert info["surgery"] == []
    assert again.state_dict().keys() == network.state_dict().keys()
    x = torch.randn(4, 8)
    assert torch.equal(again(x), made.model.eval()(x))
    assert parametrised(made.model), "saving changed the model in training"
    assert folded(network) is network


@pytest.mark.inventory("weightnorm", by="technique WeightNorm")
def test_techniques_that_choose_what_trains_find_the_new_parameters():
    run = start(compile(recipe(stage(mlp(), steps=3)), [WeightNorm(), LastK(blocks=1)]))
    trained = [name for name in run.stage.trainable() if "parametrizations" in name]
    assert trained == [f"model.{layer}.parametrizations.weight.original{i}" for layer in (2, 4) for i in (0, 1)]
    named = stage(mlp(), steps=3, trains=frozenset({"4.weight", "4.bias"}))
    changed = compile(recipe(named), [WeightNorm()]).stages[0].trains
    assert changed == {"4.bias", "4.parametrizations.weight.original0", "4.parametrizations.weight.original1"}
    with pytest.raises(
        ConfigError, match=r"WeightNorm.modules: no linear layer or convolution .* is in blocks; its parts are 0"
    ):
        compile(recipe(stage(mlp())), [WeightNorm(modules="blocks")])


@pytest.mark.inventory("spectral-norm", by="technique SpectralNorm")
def test_the_largest_singular_value_of_each_layer_of_the_discriminator_stays_about_one():
    pair = GenerativePair(latent=4, width=32).build((8,), 1)
    chosen = stage(pair, steps=40, update=adam(2e-3), data=blobs())
    made = compile(recipe(chosen), [GAN(), SpectralNorm()])
    changed = parametrised(made.model)
    assert changed
    assert all(name.startswith("discriminator.") for name in changed)
    run = start(made)
    plain_values = []
    for _ in range(4):
        advance(run, 10)
        for layer in parametrised(run.stage.model).values():
            assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) == pytest.approx(1.0, abs=0.05)
            plain_values.append(float(torch.linalg.matrix_norm(layer.parametrizations.weight.original.detach(), 2)))
    assert max(abs(value - 1) for value in plain_values) > 0.2, "the weights would have been so anyway"
    values = [layer.weight.detach().clone() for layer in changed.values()]
    after = folded(made.model)
    assert not parametrised(after)
    kept = [after.get_submodule(name).weight for name in changed]
    assert all(torch.equal(one, other) for one, other in zip(values, kept, strict=True))


@pytest.mark.inventory("spectral-norm", by="technique SpectralNorm")
@pytest.mark.parametrize("layer", [nn.Linear(12, 7), nn.Conv2d(3, 8, 3)])
def test_the_weight_is_that_of_torchs_own_with_the_same_vectors(layer):
    theirs = parametrizations.spectral_norm(copy.deepcopy(layer), n_power_iterations=20).eval()
    ours = Spectral(layer.weight)
    inner = theirs.parametrizations.weight[0]
    with torch.no_grad():
        ours.u.copy_(inner._u)
        ours.v.copy_(inner._v)
    torch.testing.assert_close(ours(layer.weight), theirs.weight, rtol=1e-6, atol=1e-7)
    ours.iterate(layer.weight, count=500)
    sigma = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
    torch.testing.assert_close(ours(layer.weight), layer.weight / sigma, rtol=1e-5, atol=1e-6)


@pytest.mark.inventory("spectral-norm", by="technique SpectralNorm")
def test_the_gradient_goes_through_the_singular_value():
    weight = torch.randn(5, 3, dtype=torch.float64)
    norm = Spectral(weight)
    assert torch.autograd.gradcheck(norm, (weight.requires_grad_(),))


def test_a_layer_stretches_no_difference_of_inputs():
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    made = made_with(SpectralNorm(modules="*", iterations=3), model, steps=30, update=sgd(0.5))
    fit(made)
    a, b = torch.randn(500, 8), torch.randn(500, 8)
    with torch.no_grad():
        stretch = (made.model(a) - made.model(b)).norm(dim=1) / (a - b).norm(dim=1)
    assert float(stretch.max()) <= 1.05
