"""Discriminative sets the learning rate of every parameter by its depth."""

from __future__ import annotations

import pytest
import torch
import toy
from torch import nn

from regraft.core import compile
from regraft.core.train import start
from regraft.techniques.peft.lora import LoRA
from regraft.techniques.regularise.sam import SAM
from regraft.techniques.transfer.cache_prefix import CachePrefix
from regraft.techniques.transfer.discriminative import Discriminative
from regraft.techniques.transfer.last_k import LastK


def rates(recipe) -> dict[str, float]:
    """Learning rate of each parameter by its name in the whole model; read from the optimizer itself."""
    run = start(recipe)
    update = run.step.updates["all"]
    while hasattr(update, "base"):
        update = update.base
    names = {id(p): name for name, p in recipe.model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in update.optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("others", [[], [SAM()]])
def test_rates_fall_by_the_decay_from_block_to_block(others):
    found = rates(
        compile(toy.recipe(toy.stage(update=toy.sgd(lr=0.1))), [Discriminative(decay=0.5, head=3.0), *others])
    )
    by_hand = {"4.weight": 0.3, "4.bias": 0.3, "2.weight": 0.1, "2.bias": 0.1, "0.weight": 0.05, "0.bias": 0.05}
    assert found == pytest.approx(by_hand)


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, num_labels=4,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
    model.inputs = ("input_ids", "attention_mask")
    return model


@pytest.mark.parametrize("embeddings", ["trained", "frozen"])
def test_the_embeddings_of_a_transformer_lie_one_below_its_lowest_layer(embeddings):
    recipe = toy.recipe(toy.stage(bert(), update=toy.sgd(lr=1.0)))
    found = rates(compile(recipe, [Discriminative(decay=0.5, embeddings=embeddings)]))
    assert found["classifier.weight"] == found["bert.pooler.dense.weight"] == 1.0
    for layer, rate in ((2, 1.0), (1, 0.5), (0, 0.25)):
        assert found[f"bert.encoder.layer.{layer}.output.dense.weight"] == rate
    assert found.get("bert.embeddings.word_embeddings.weight") == (0.125 if embeddings == "trained" else None)


def test_adapted_layers_have_the_rate_of_their_block():
    found = rates(compile(toy.recipe(toy.stage(update=toy.sgd(lr=1.0))), [LoRA(rank=2), Discriminative(decay=0.5)]))
    assert found["0.lora_A.default.weight"] == 0.5
    assert found["2.lora_B.default.weight"] == 1.0
    assert "0.base_layer.weight" not in found


def test_rates_stay_when_the_prefix_is_stored():
    techniques = [LastK(blocks=1), Discriminative(decay=0.5, head=4.0)]
    plain, cached = (toy.recipe(toy.stage(update=toy.sgd(lr=0.1))) for _ in range(2))
    assert rates(compile(cached, [*techniques, CachePrefix()])) == rates(compile(plain, techniques))
