"""LastK freezes everything below, entirely."""

from __future__ import annotations

import pytest
import torch
import toy
from torch import nn

from regraft.core import compile, fit
from regraft.errors import ConfigError
from regraft.optim.optimizers import AdamW
from regraft.techniques.transfer.last_k import LastK


def convolutional(dropout: float = 0.5) -> nn.Sequential:
    """Three blocks of convolution, batch norm and dropout, and a head: what a frozen batch norm can go wrong in."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = [
            Block(nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout))
            for channels in (1, 4, 4)
        ]
        return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(4 * 4 * 4, 4))


class Block(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


def pictures(n: int = 64):
    data = toy.blobs(n=n, dim=16)
    return {"x": data["x"].reshape(n, 1, 4, 4) + 3.0, "y": data["y"]}


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_only_the_head_and_the_last_block_change_and_not_a_bit_below_with_decay_dropout_and_batch_norm():
    model = convolutional()
    recipe = toy.recipe(
        toy.stage(model, data=pictures(), steps=6, update=toy.descent(AdamW(lr=0.01, weight_decay=0.5)))
    )
    before = state(model)
    fit(compile(recipe, [LastK(blocks=1)]))
    changed = {name for name, value in state(model).items() if not torch.equal(value, before[name])}
    assert {name.partition(".")[0] for name in changed} == {"2", "4"}
    assert "2.layers.1.running_mean" in changed, "the block that trains keeps its statistics up to date"


def test_dropout_is_off_in_the_frozen_part_while_the_rest_trains():
    model = convolutional(dropout=0.9)
    recipe = compile(toy.recipe(toy.stage(model, data=pictures(), steps=1)), [LastK(blocks=1)])
    outputs = []
    handle = model[1].register_forward_hook(lambda module, args, out: outputs.append(out.detach()))
    fit(recipe)
    handle.remove()
    batch = next(iter(recipe.stages[0].source.batches(model)))
    model.eval()
    assert torch.equal(outputs[0], model[1](model[0](batch["x"])))


def test_with_no_block_only_the_head_trains():
    stage = compile(toy.recipe(toy.stage()), [LastK(blocks=0)]).stages[0]
    assert stage.trains == {"4.weight", "4.bias"}


def test_what_was_frozen_before_stays_frozen():
    model = toy.mlp()
    model[2].bias.requires_grad_(False)
    assert compile(toy.recipe(toy.stage(model)), [LastK(blocks=1)]).stages[0].trains == {
        "2.weight",
        "4.weight",
        "4.bias",
    }


def test_more_blocks_than_there_are_is_refused():
    with pytest.raises(ConfigError, match=r"LastK.blocks: must be at most 2 .* got 5"):
        compile(toy.recipe(toy.stage()), [LastK(blocks=5)])


def test_a_model_frozen_whole_is_refused():
    with pytest.raises(ConfigError, match="frozen already"):
        compile(toy.recipe(toy.stage(toy.mlp().requires_grad_(False))), [LastK(blocks=1)])
