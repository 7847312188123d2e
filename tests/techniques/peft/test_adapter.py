"""Adapter: the identity at first, counted by hand, and it survives what models go through."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import toy
from torch import nn
from torch.func import functional_call

from regraft.core import compile, fit
from regraft.errors import Conflict, ModelError
from regraft.layers.bottleneck import Bottleneck, Bottlenecks, adapter_parameters, insert
from regraft.optim.optimizers import AdamW
from regraft.techniques.peft.adapter import Adapter
from regraft.testing import toy_recipe


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, num_labels=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Logits(BertForSequenceClassification(config))


class Logits(nn.Module):
    inputs = ("input_ids",)

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, input_ids):
        return self.whole(input_ids=input_ids).logits


class Words(toy.Tensors):
    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        super().__init__(
            {"input_ids": torch.randint(50, (64, 6), generator=g), "y": torch.randint(4, (64,), generator=g)}
        )
        self.inputs = {"input_ids": "id"}


class Block(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))


def convolutional() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(Block(1, 4), Block(4, 6), nn.Flatten(), nn.Linear(6 * 16, 4))


def pictures():
    data = toy.blobs(n=64, dim=16)
    return toy.Tensors({"x": data["x"].reshape(64, 1, 4, 4), "y": data["y"]})


CASES = {
    "tokens": (bert, Words),
    "maps": (convolutional, pictures),
    "vectors": (toy.mlp, lambda: toy.Tensors(toy.blobs())),
}


@pytest.fixture(params=CASES)
def made(request):
    make, source = CASES[request.param]
    model = make()
    recipe = toy.recipe(
        toy.stage(model, source=source(), steps=4, update=toy.descent(AdamW(lr=0.01, weight_decay=0.5)))
    )
    compiled = compile(recipe, [Adapter(width=3)])
    batch = next(iter(recipe.stages[0].source.batches(model)))
    key = next(iter(recipe.stages[0].source.inputs))
    return model.eval(), compiled, batch[key]


def test_the_first_output_is_the_base_models_bit_for_bit(made):
    model, compiled, x = made
    assert torch.equal(compiled.model.eval()(x), model(x))


def test_no_name_changes_and_the_state_only_grows(made):
    model, compiled, _ = made
    grown = compiled.model.state_dict()
    assert set(grown) - set(model.state_dict()) == adapter_parameters(compiled.model)
    assert set(model.state_dict()) <= set(grown)
    assert all(grown[name] is value or torch.equal(grown[name], value) for name, value in model.state_dict().items())


def test_only_adapters_and_head_change(made):
    _, compiled, _ = made
    before = {name: value.clone() for name, value in compiled.model.state_dict().items()}
    fit(compiled)
    changed = {name for name, value in compiled.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == compiled.stages[0].trains
    assert adapter_parameters(compiled.model) < changed


def test_copies_pickles_and_functional_calls_use_their_own_adapters(made):
    _, compiled, x = made
    fit(compiled)
    model = compiled.model.eval()
    expected = model(x)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in copies:
        assert torch.equal(other(x), expected)
        with torch.no_grad():
            for name in adapter_parameters(other):
                other.get_parameter(name).zero_()
        assert not torch.equal(other(x), expected), "the copy does not use its own adapters"
        assert torch.equal(model(x), expected)
    zeros = {name: torch.zeros_like(model.get_parameter(name)) for name in adapter_parameters(model)}
    assert torch.equal(functional_call(model, zeros, (x,)), copies[0](x))


def test_parameters_are_as_many_as_the_formula_says():
    recipe = compile(toy.recipe(toy.stage(bert(), source=Words())), [Adapter(width=5)])
    added = sum(recipe.model.get_parameter(name).numel() for name in adapter_parameters(recipe.model))
    assert added == 3 * (2 * 16 * 5 + 16 + 5), "Houlsby et al., section 2.1: 2md + d + m a layer"


def test_an_adapter_computes_the_formula():
    adapter = Bottleneck(6, 4)
    nn.init.normal_(adapter.up.weight)
    x = torch.randn(2, 3, 6)
    by_hand = x + torch.relu(x @ adapter.down.weight.T + adapter.down.bias) @ adapter.up.weight.T + adapter.up.bias
    torch.testing.assert_close(adapter(x), by_hand)


def test_the_first_weights_depend_on_the_seed_alone():
    def first(seed: int, noise: int) -> torch.Tensor:
        torch.manual_seed(noise)
        recipe = compile(toy.recipe(toy.stage()), [Adapter(width=3, seed=seed)])
        return recipe.model.get_parameter("2.adapter.down.weight")

    with torch.random.fork_rng():
        assert torch.equal(first(0, noise=1), first(0, noise=2))
        assert not torch.equal(first(0, noise=1), first(1, noise=1))


def test_a_model_is_made_again_from_the_description():
    recipe = compile(toy.recipe(toy.stage(steps=4)), [Adapter(width=3)])
    fit(recipe)
    description = Bottlenecks.from_json(Bottlenecks(width=3, places={"0": (32, False), "2": (32, False)}).to_json())
    again = insert(toy.mlp(), description)
    again.load_state_dict(recipe.model.state_dict())
    x = toy.blobs()["x"]
    assert torch.equal(again(x), recipe.model(x))


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return {"y": self.linear(x["y"] if isinstance(x, dict) else x)}


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList([Odd(), Odd()]), nn.Linear(8, 4)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x["y"])


def test_what_cannot_be_adapted_is_refused_in_a_sentence():
    class Tangle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.only = nn.Linear(8, 4)

        def forward(self, x):
            return self.only(x)

    with pytest.raises(Conflict, match="Adapter: the Tangle in stage 'toy' has no chain of blocks"):
        compile(toy.recipe(toy.stage(Tangle())), [Adapter()])
    with pytest.raises(ModelError, match="returns a tensor or a tuple"):
        compile(toy.recipe(toy.stage(Last())), [Adapter(width=2)]).model(toy.blobs()["x"])


def test_running_statistics_stay_where_a_block_is_batch_normalisation():
    model = nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)
    )
    before = {name: value.clone() for name, value in model.named_buffers()}
    recipe = compile(toy_recipe(model), [Adapter(width=4)])
    fit(recipe)
    after = dict(recipe.model.named_buffers())
    assert before
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []
