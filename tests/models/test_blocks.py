from __future__ import annotations

import torch
from torch import nn

from regraft.models.backbone import Backbone
from regraft.models.blocks import blocks, layer_groups
from regraft.models.cut import cut
from regraft.models.freeze import freeze, frozen_prefix
from regraft.models.graft import Graft
from regraft.models.trace import trace


def test_blocks_are_all_there_and_in_the_order_in_which_they_run(architecture):
    _, number, module, batch = architecture
    found = blocks(module)
    calls = [call.name for call in trace(module, batch).calls]
    order = [calls.index(block.name) for block in found]
    assert len(found) == number
    assert order == sorted(order)
    assert len({type(block.module) for block in found}) == 1


def test_layer_groups_hold_every_parameter_once_with_the_embeddings_lowest(architecture):
    _, number, module, _ = architecture
    groups = layer_groups(module)
    names = [name for group in groups for name in group]
    assert sorted(names) == sorted(name for name, _ in module.named_parameters())
    assert len(groups) == number + 3
    assert groups[0]
    assert all(groups[1 : number + 1])
    embeddings = {n for n, m in module.named_modules() if isinstance(m, nn.Embedding)}
    assert {name for name in names if name.rpartition(".")[0] in embeddings} <= set(groups[0])


def test_gradient_of_a_group_reaches_only_groups_at_or_below_the_read_depth(architecture):
    """Reading depth k must give gradients to the stem and blocks up to k, and to nothing above."""
    name, number, module, batch = architecture
    k = number // 2
    modality = "text" if "input_ids" in batch else "image"
    graft = Graft(
        Backbone(module=module, name=name, modality=modality, inputs=tuple(batch), example=batch),
        depths=[k],
        pools=["mean"],
        num_outputs=2,
    )
    graft(**batch).square().sum().backward()
    reached = {n for n, p in module.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    groups = layer_groups(module)
    assert reached <= {n for group in groups[: k + 1] for n in group}
    assert all(reached & set(group) for group in groups[1 : k + 1])


def test_cut_gives_the_bits_and_the_names_of_the_whole_and_the_cut_off_model_the_same_features(architecture):
    name, number, module, batch = architecture
    modality = "text" if "input_ids" in batch else "image"
    graft = Graft(
        Backbone(module=module, name=name, modality=modality, inputs=tuple(batch), example=batch),
        depths=[0, number // 2, number - 1],
        pools=["mean", "max"],
        num_outputs=3,
    )
    with torch.no_grad():
        before = graft(**batch)
    assert graft.cut_above() > 0
    with torch.no_grad():
        assert torch.equal(graft(**batch), before)
    freeze(graft, depth=number - 2)
    assert frozen_prefix(graft) == number - 2
    for k in {1, number - 2}:
        parts = cut(graft, k, batch)  # verifies the bits itself, or raises
        named = dict(graft.named_parameters())
        own = dict(parts.suffix.named_parameters())
        assert all(named[n] is p for n, p in own.items())
        assert {n for n, p in named.items() if p.requires_grad} <= own.keys()
        assert len(own) < len(named)


def test_elements_of_a_sequential_and_of_nested_ones_are_blocks():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), nn.Linear(4, 2))
    assert [block.name for block in blocks(model)] == ["0", "1.0", "1.1", "2"]


def test_blocks_spread_over_sibling_sequentials_are_joined():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())

        def forward(self, x):
            return x + self.layer(x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer1 = nn.Sequential(Residual(), Residual())
            self.layer2 = nn.Sequential(Residual())
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))

    net = Net()
    assert [block.name for block in blocks(net)] == ["layer1.0", "layer1.1", "layer2.0"]
    assert layer_groups(net)[-1] == ["fc.weight", "fc.bias"]
