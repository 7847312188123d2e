"""NormOnly trains gains and shifts, and nothing drifts."""

from __future__ import annotations

import pytest
import torch
import toy
from torch import nn

from regraft.core import compile, fit
from regraft.errors import ConfigError
from regraft.optim.optimizers import AdamW
from regraft.techniques.peft.norm_only import NormOnly, norm_parameters


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.batch, self.group = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
        self.linear, self.layer, self.root = nn.Linear(64, 8), nn.LayerNorm(8), nn.RMSNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.group(self.batch(self.conv(x)))).flatten(1)
        return self.head(self.root(self.layer(self.linear(x))))


def made(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mixed()
    data = toy.blobs(n=64, dim=16)
    source = toy.Tensors({"x": data["x"].reshape(64, 1, 4, 4) + 3.0, "y": data["y"]})
    update = toy.descent(AdamW(lr=0.01, weight_decay=0.5))
    return compile(toy.recipe(toy.stage(model, source=source, steps=5, update=update)), [NormOnly(**options)])


NORMS = {"batch.weight", "batch.bias", "group.weight", "group.bias", "layer.weight", "layer.bias", "root.weight"}
HEAD = {"head.weight", "head.bias"}


@pytest.mark.parametrize(("biases", "more"), [(False, set()), (True, {"conv.bias", "linear.bias"})])
def test_exactly_gains_shifts_and_head_change_and_running_statistics_stay(biases, more):
    recipe = made(biases=biases)
    before = {name: value.clone() for name, value in recipe.model.state_dict().items()}
    fit(recipe)
    changed = {name for name, value in recipe.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == NORMS | HEAD | more


def test_batch_norm_normalises_by_its_running_statistics_in_training():
    recipe = made()
    model, inputs, outputs = recipe.model, [], []
    first = recipe.model.batch.weight.detach().clone(), recipe.model.batch.bias.detach().clone()

    def look(module, args, output):
        inputs.append(args[0].detach())
        outputs.append(output.detach())

    handle = model.batch.register_forward_hook(look)
    fit(recipe)
    handle.remove()
    norm = model.batch
    by_hand = nn.functional.batch_norm(
        inputs[0], norm.running_mean, norm.running_var, *first, training=False, eps=norm.eps
    )
    assert torch.equal(outputs[0], by_hand)


def test_normalisation_layers_of_transformers_are_found_whatever_they_are_called():
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    found = set(norm_parameters(LlamaModel(config)))
    layer = {f"layers.0.{name}.weight" for name in ("input_layernorm", "post_attention_layernorm")}
    assert found == layer | {"norm.weight"}


def test_a_model_without_normalisation_is_refused():
    with pytest.raises(ConfigError, match="has no normalisation layers to train; choose another technique"):
        compile(toy.recipe(toy.stage()), [NormOnly()])
