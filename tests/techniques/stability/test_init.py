"""Variances through deep networks with initial weights of each kind, and what is never overwritten."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy import Tensors, bert_graft, recipe, sgd, stage

from regraft.core import compile, fit
from regraft.core.seeding import generator
from regraft.errors import ConfigError
from regraft.layers.initial import initialise
from regraft.models.networks import ConvNet
from regraft.techniques.stability.init import Init

DEPTH, WIDTH = 20, 256


def deep(activation, *, depth=DEPTH, width=WIDTH):
    """A plain stack of linear layers with torch's own initial weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [part for _ in range(depth) for part in (nn.Linear(width, width), activation())]
        return nn.Sequential(*layers, nn.Linear(width, 4))


def rows(n=256, width=WIDTH):
    g = generator(3)
    return {"x": torch.randn(n, width, generator=g), "y": torch.randint(4, (n,), generator=g)}


def variances(model, x, kind):
    """Of the outputs of all modules of a kind, in order."""
    found = []
    handles = [
        m.register_forward_hook(lambda module, args, out: found.append(float(out.detach().var())))
        for m in model.modules()
        if isinstance(m, kind)
    ]
    model.eval()(x)
    for handle in handles:
        handle.remove()
    return found


def made_with(technique, model, data):
    return compile(recipe(stage(model, data=data)), [technique]).model


@pytest.mark.inventory("he-init", by="technique Init: kaiming")
@pytest.mark.parametrize("seed", range(2))
def test_the_variance_stays_through_20_relu_layers_with_kaiming(seed):
    """Of what each layer gives, against the first layer's; the mean square of what is left after ReLU is half of it."""
    data, plain = rows(64, 1024), deep(nn.ReLU, width=1024)
    model = made_with(Init(kind="kaiming", seed=seed), plain, data)
    before = variances(model, data["x"], nn.Linear)[:-1]
    assert len(before) == DEPTH
    assert before[0] == pytest.approx(2.0, rel=0.05)
    assert all(0.5 <= variance / 2 <= 2 for variance in before), before
    assert variances(plain, data["x"], nn.Linear)[-2] < 1e-2, "torch's own would have done it"


@pytest.mark.inventory("xavier-init", by="technique Init: xavier")
@pytest.mark.parametrize("seed", range(3))
def test_the_variance_before_tanh_stays_through_20_layers_with_xavier(seed):
    """What enters tanh; what leaves it has a variance below 1 whatever the weights, since its values are."""
    data, plain = rows(), deep(nn.Tanh)
    model = made_with(Init(kind="xavier", nonlinearity="tanh", seed=seed), plain, data)
    before = variances(model, data["x"], nn.Linear)[:-1]
    assert all(0.5 <= variance <= 2.9 for variance in before[:1]), "of unit inputs it is the square of the gain, 25/9"
    assert all(0.5 <= variance <= 2 for variance in before[1:]), before
    assert variances(plain, data["x"], nn.Linear)[-2] < 0.05


@pytest.mark.inventory("he-init", by="technique Init: kaiming")
@pytest.mark.inventory("xavier-init", by="technique Init: xavier")
def test_deviations_are_those_of_the_papers_for_linear_layers_and_convolutions():
    for shape, fan_in, fan_out in (((300, 200), 200, 300), ((64, 32, 3, 3), 32 * 9, 64 * 9)):
        for kind, nonlinearity, expected in (
            ("kaiming", "relu", (2 / fan_in) ** 0.5),
            ("xavier", "linear", (2 / (fan_in + fan_out)) ** 0.5),
            ("xavier", "tanh", 5 / 3 * (2 / (fan_in + fan_out)) ** 0.5),
        ):
            weight = torch.empty(shape)
            initialise(weight, kind, nonlinearity=nonlinearity, random=generator(0))
            assert float(weight.std()) == pytest.approx(expected, rel=0.03)
    weight = torch.empty(64, 100)
    initialise(weight, "orthogonal", nonlinearity="linear", random=generator(0))
    torch.testing.assert_close(weight @ weight.T, torch.eye(64), rtol=0, atol=1e-5)


def pictures():
    g = generator(1)
    return {"x": 3 * torch.randn(64, 3, 8, 8, generator=g) + 1, "y": torch.randint(4, (64,), generator=g)}


def plain_convolutions():
    """Ten convolutions without normalisation."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [part for i in range(10) for part in (nn.Conv2d(3 if i == 0 else 16, 16, 3, padding=1), nn.GELU())]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 64, 4))


@pytest.mark.inventory("lsuv", by="technique Init: lsuv")
@pytest.mark.parametrize("build", [plain_convolutions, lambda: ConvNet(width=8, dropout=0.0).build((3, 8, 8), 4)])
def test_every_layer_of_a_convolutional_network_has_outputs_of_variance_one_after_the_pass(build):
    data, plain = pictures(), build()
    model = made_with(Init(kind="lsuv", tolerance=0.02), plain, data)
    batch = next(iter(Tensors(data).batches(model)))["x"]
    after = variances(model, batch, (nn.Conv2d, nn.Linear))
    assert len(after) >= 11
    assert all(abs(variance - 1) <= 0.02 for variance in after), after
    assert max(abs(v - 1) for v in variances(plain, batch, (nn.Conv2d, nn.Linear))) > 0.5


@pytest.mark.inventory("lsuv", by="technique Init: lsuv")
def test_a_deep_network_without_normalisation_learns_with_lsuv_and_not_with_torchs_own():
    data = rows(width=16)
    data["y"] = data["x"][:, :4].argmax(1)
    losses = {}
    for name, techniques in (("own", []), ("lsuv", [Init(kind="lsuv")])):
        chosen = stage(deep(nn.ReLU, width=16), steps=150, data=data, update=sgd(0.05))
        losses[name] = fit(compile(recipe(chosen), techniques)).history[-1]["loss"]
    assert losses["own"] > 1.3, "it learned"
    assert losses["lsuv"] < 1.0, losses


def test_the_weights_are_a_function_of_seed_and_place_and_the_given_model_keeps_its_own():
    data, plain = rows(), deep(nn.ReLU, depth=3)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    plain[0].requires_grad_(False)
    one, same, other = (made_with(Init(seed=seed), plain, data) for seed in (0, 0, 1))
    assert all(torch.equal(plain.state_dict()[name], tensor) for name, tensor in before.items())
    assert torch.equal(one[0].weight, before["0.weight"]), "a frozen layer was overwritten"
    assert torch.equal(one[2].weight, same[2].weight)
    assert not torch.equal(one[2].weight, other[2].weight)
    assert not torch.equal(one[2].weight, one[4].weight)
    assert one[2].bias.count_nonzero() == 0


def test_pretrained_weights_are_kept_unless_asked():
    graft = bert_graft(blocks=2, depths=(2,))
    g = generator(0)
    data = {"input_ids": torch.randint(50, (32, 5), generator=g), "attention_mask": torch.ones(32, 5, dtype=torch.long)}
    source = Tensors(data | {"y": torch.randint(4, (32,), generator=g)}, batch_size=16)
    source.inputs = dict.fromkeys(data, "id")
    whole = recipe(stage(graft, source=source))
    with pytest.raises(
        ConfigError, match="trains a pretrained Graft, whose weights would be thrown away; set `layers: head`"
    ):
        compile(whole, [Init()])
    before = graft.state_dict()
    for technique, share in ((Init(layers="head"), "head."), (Init(pretrained="overwrite", kind="lsuv"), "")):
        after = compile(whole, [technique]).model.state_dict()
        changed = [name for name in before if not torch.equal(before[name], after[name])]
        assert changed
        assert all(name.startswith(share) for name in changed)
    assert any("attention" in name for name in changed)
