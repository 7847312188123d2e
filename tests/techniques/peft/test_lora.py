"""LoRA against peft's own numbers and the formula, and what it must leave alone."""

from __future__ import annotations

import pytest
import torch
import toy
from torch import nn

from regraft.core import compile, fit
from regraft.errors import ConfigError
from regraft.layers.low_rank import LowRank, describe, find_targets, inject, merge, save_adapter
from regraft.optim.optimizers import AdamW
from regraft.techniques.peft.lora import LoRA


def bert(**options) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, num_labels=4, **options,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForSequenceClassification(config).eval()


TOKENS = {"input_ids": torch.arange(20).view(2, 10), "attention_mask": torch.ones(2, 10, dtype=torch.long)}


def stirred(model: nn.Module) -> nn.Module:
    """The model with every B away from zero."""
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.2, generator=g)
    return model


class Pointwise(nn.Module):
    """A MobileNet-like block: depthwise convolution, 1x1 convolution, each with batch norm."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.deep = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.deep_norm = nn.BatchNorm2d(channels)
        self.point = nn.Conv2d(channels, out, 1)
        self.point_norm = nn.BatchNorm2d(out)

    def forward(self, x):
        return torch.relu(self.point_norm(self.point(torch.relu(self.deep_norm(self.deep(x))))))


def mobile() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(Pointwise(4, 8), Pointwise(8, 8), nn.Flatten(), nn.Linear(8 * 4, 4))


def maps(n: int = 64):
    data = toy.blobs(n=n, dim=16)
    return {"x": data["x"].reshape(n, 4, 2, 2) + 3.0, "y": data["y"]}


@pytest.mark.inventory("lora", by="technique LoRA")
def test_the_first_output_is_the_base_models_bit_for_bit():
    model, x = toy.mlp(), toy.blobs()["x"]
    assert torch.equal(compile(toy.recipe(toy.stage(model)), [LoRA(rank=4)]).model(x), model(x))
    plain = bert()
    adapted = inject(plain, LowRank(targets=find_targets(plain), rank=4, alpha=8))
    assert torch.equal(adapted(**TOKENS).logits, plain(**TOKENS).logits)


@pytest.mark.inventory("lora", by="technique LoRA")
def test_an_adapted_layer_computes_the_formula():
    layer = nn.Sequential(nn.Linear(6, 5))
    adapted = stirred(inject(layer, LowRank(targets=("0",), rank=3, alpha=12.0)))
    a, b = (adapted.get_parameter(f"0.lora_{which}.default.weight") for which in "AB")
    x = torch.randn(7, 6)
    by_hand = x @ (layer[0].weight + 12.0 / 3 * b @ a).T + layer[0].bias
    torch.testing.assert_close(adapted(x), by_hand, rtol=0, atol=1e-6)


@pytest.mark.inventory("lora", by="technique LoRA")
@pytest.mark.parametrize("make", [bert, mobile], ids=["linear", "1x1 convolutions"])
def test_merged_equals_unmerged_and_the_adapted_model_is_left_as_it_was(make):
    model = make().eval()
    adapted = stirred(inject(model, LowRank(targets=find_targets(model), rank=4, alpha=8.0)))
    inputs = {"x": maps(4)["x"]} if make is mobile else TOKENS
    call = (lambda m: m(**inputs).logits) if make is bert else (lambda m: m(inputs["x"]))
    before, base = call(adapted), call(model)
    plain = merge(adapted)
    assert not torch.allclose(before, base, atol=1e-3), "the adapters do nothing, so the comparison says nothing"
    torch.testing.assert_close(call(plain), before, rtol=0, atol=1e-6)
    assert torch.equal(call(adapted), before)
    assert torch.equal(call(model), base)
    assert plain.state_dict().keys() == model.state_dict().keys()


def test_the_first_weights_depend_on_the_seed_alone():
    def first(seed: int, noise: int) -> torch.Tensor:
        torch.manual_seed(noise)
        recipe = compile(toy.recipe(toy.stage(toy.mlp())), [LoRA(rank=4, seed=seed)])
        after = torch.rand(1)
        torch.manual_seed(noise)
        assert torch.equal(after, torch.rand(1)), "the caller's random numbers were used up"
        return recipe.model.get_parameter("2.lora_A.default.weight")

    with torch.random.fork_rng():
        assert torch.equal(first(0, noise=1), first(0, noise=2))
        assert not torch.equal(first(0, noise=1), first(1, noise=1))


def test_automatic_targets_are_the_linear_layers_of_the_blocks_or_else_the_1x1_convolutions():
    linear = {
        "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense", "intermediate.dense",
        "output.dense",
    }  # fmt: skip
    assert set(find_targets(bert())) == {f"bert.encoder.layer.{i}.{name}" for i in range(2) for name in linear}
    assert find_targets(mobile()) == ("0.point", "1.point")
    assert find_targets(toy.mlp()) == ("0", "2"), "the head trains whole"


def test_patterns_match_whole_names_and_their_ends():
    assert find_targets(bert(), ("query", "value")) == tuple(
        f"bert.encoder.layer.{i}.attention.self.{name}" for i in range(2) for name in ("query", "value")
    )
    assert find_targets(bert(), "layer.1.attention.self.*") == tuple(
        f"bert.encoder.layer.1.attention.self.{name}" for name in ("query", "key", "value")
    )
    with pytest.raises(ConfigError, match=r"matches 'qeury'; did you mean 'query'\?"):
        find_targets(bert(), "qeury")


def test_a_rank_above_the_smaller_side_is_refused():
    with pytest.raises(ConfigError, match=r"LoRA.rank: must be at most 8 \(the smaller side of 0\), got 9"):
        compile(toy.recipe(toy.stage()), [LoRA(rank=9)])


def test_batch_norm_statistics_stay_fixed_in_training_where_peft_alone_lets_them_drift():
    import peft

    alone = peft.get_peft_model(mobile(), peft.LoraConfig(r=4, target_modules=["point"]))
    alone.train()
    alone(maps()["x"])
    assert not torch.equal(alone.base_model.model[0].deep_norm.running_mean, mobile()[0].deep_norm.running_mean)

    stage = toy.stage(mobile(), data=maps(), steps=6, update=toy.descent(AdamW(lr=0.01, weight_decay=0.5)))
    recipe = compile(toy.recipe(stage), [LoRA(rank=4)])
    before = {name: value.clone() for name, value in recipe.model.state_dict().items()}
    fit(recipe)
    changed = {name for name, value in recipe.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == recipe.stages[0].trains
    assert changed == {f"{i}.point.lora_{w}.default.weight" for i in range(2) for w in "AB"} | {"3.weight", "3.bias"}


def test_the_model_it_was_given_keeps_its_modules():
    model = toy.mlp()
    names = list(model.state_dict())
    compile(toy.recipe(toy.stage(model)), [LoRA(rank=4)])
    assert list(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())


def test_several_stages_train_the_same_adapters():
    model = toy.mlp()
    stages = (toy.stage(model, name="a", steps=3), toy.stage(model, name="b", steps=3))
    recipe = compile(toy.recipe(*stages), [LoRA(rank=4)])
    assert recipe.model is recipe.stages[0].model is recipe.stages[1].model


@pytest.mark.inventory("lora", by="technique LoRA")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks transformers
def test_a_saved_adapter_loads_with_plain_peft(tmp_path):
    import peft

    trained = stirred(inject(bert(), LowRank(targets=find_targets(bert(), ("query", "dense")), rank=4, alpha=8.0)))
    with torch.no_grad():
        trained.classifier.weight.add_(0.5)
    save_adapter(trained, tmp_path, base="tiny", also=["classifier"])
    expected = trained(**TOKENS).logits
    plain = peft.PeftModel.from_pretrained(bert(), str(tmp_path)).eval()
    torch.testing.assert_close(plain(**TOKENS).logits, expected, rtol=0, atol=1e-6)


def test_its_description_survives_json():
    import json

    description = LowRank(targets=("0", "2"), rank=4, alpha=8.0, dropout=0.1)
    assert LowRank.from_json(json.loads(json.dumps(description.to_json()))) == description
    assert describe(inject(toy.mlp(), description)) == description
