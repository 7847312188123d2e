"""What is left out in training, how often, and that nothing is left out in eval mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy import Tensors, bert_graft, blobs, mlp, recipe, stage, weights

from regraft.core import compile, fit
from regraft.core.train import advance, start
from regraft.errors import ConfigError, Conflict
from regraft.layers.drop import drop_features, drop_path, drop_rates, weights_dropped
from regraft.models.conv_networks import VGG
from regraft.models.networks import MLP, ConvNet
from regraft.phases.training import set_steady
from regraft.techniques.peft.lora import LoRA
from regraft.techniques.regularise.dropout import DropConnect, Dropout, DropPath, SpatialDropout
from regraft.techniques.transfer.cache_prefix import CachePrefix
from regraft.techniques.transfer.last_k import LastK

pytestmark = pytest.mark.filterwarnings("error")


def images(n=64):
    g = torch.Generator().manual_seed(0)
    return {"x": torch.randn(n, 3, 8, 8, generator=g), "y": torch.randint(4, (n,), generator=g)}


def prepared(technique, model, data=None):
    """The model of a compiled recipe as it is when its stage runs, and the run."""
    return begun(compile(recipe(stage(model, steps=2, data=data)), [technique]))


def begun(made):
    run = start(made)
    for hook in run.hooks:
        hook.on_start(run)
    return run.stage.model, run


def share_of_zeros(tensor):
    return float((tensor == 0).float().mean())


def test_dropout_that_drops_nothing_says_so():
    def notes(*techniques):
        network = MLP(width=16, depth=2, dropout=0.1).build((8,), 4)
        return [
            note for note in fit(compile(recipe(stage(network, steps=2)), techniques)).notes if "drops nothing" in note
        ]

    (said,) = notes(Dropout(rate=0.5), LastK(blocks=0))
    assert said.startswith("Dropout drops nothing in stage 'toy': all dropout layers of the ResidualMLP")
    assert notes(Dropout(rate=0.5), LastK(blocks=1)) == []
    assert notes(Dropout(rate=0.5, where="head"), LastK(blocks=0)) == []


def test_the_rate_of_hidden_layers_of_a_vgg_is_that_of_the_technique():
    network = VGG(stages=((8,),), hidden=(64,), dropout=0.5).build((3, 8, 8), 4)
    model, _ = prepared(Dropout(rate=0.0), network, data=images())
    model.train()
    x = images()["x"]
    assert torch.equal(model.hidden(x.mean((2, 3)) @ torch.ones(3, 8)), model.hidden(x.mean((2, 3)) @ torch.ones(3, 8)))


@pytest.mark.inventory("dropout", by="technique Dropout")
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_share_of_entries_that_dropout_keeps_is_measured_and_eval_is_the_identity(rate):
    plain = MLP(width=64, depth=2, dropout=0.0).build((8,), 4)
    model, _ = prepared(Dropout(rate=rate), plain)
    seen = []
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert [layer.p for layer in layers] == [rate] * 2
    assert [m.p for m in plain.modules() if isinstance(m, nn.Dropout)] == [0.0, 0.0], "the given model was changed"
    layers[0].register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    x = torch.randn(512, 8)
    torch.manual_seed(0)
    model.train()(x)
    (before, after), kept = seen[0], seen[0][1] != 0
    assert abs(share_of_zeros(after) - rate) < 0.01
    torch.testing.assert_close(after[kept], before[kept] / (1 - rate))
    assert torch.equal(model.eval()(x), plain.eval()(x))


@pytest.mark.inventory("dropout", by="technique Dropout")
def test_a_network_without_dropout_layers_gets_one_in_front_of_its_head():
    plain = mlp()
    model, _ = prepared(Dropout(rate=0.4), plain)
    seen = []
    model[4].register_forward_hook(lambda module, args, output: seen.append(args[0]))
    x = torch.randn(256, 8)
    model.train()(x)
    model.eval()(x)
    ordinary = share_of_zeros(seen[1])  # those of the ReLU
    assert abs(share_of_zeros(seen[0]) - (ordinary + 0.4 * (1 - ordinary))) < 0.02
    assert torch.equal(model(x), plain(x))
    assert model.state_dict().keys() == plain.state_dict().keys()
    with pytest.raises(Conflict, match="has no dropout layer; set `where: head`"):
        compile(recipe(stage(mlp())), [Dropout(where="layers")])


@pytest.mark.inventory("dropout", by="technique Dropout")
def test_steady_training_and_dropout_are_refused_beside_each_other():
    for technique, model in ((Dropout(), mlp()), (DropConnect(), mlp()), (DropPath(), MLP().build((8,), 4))):
        set_steady(model)
        with pytest.raises(ConfigError, match=r"trains the weights in eval mode, in which .* is off"):
            compile(recipe(stage(model)), [technique])


@pytest.mark.inventory("dropout", by="technique Dropout")
def test_a_transformers_own_dropout_layers_get_the_rate_and_a_stored_prefix_knows_of_it():
    graft = bert_graft(blocks=2, depths=(2,))
    model, _ = prepared_text(Dropout(rate=0.3), graft)
    rates = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    assert rates == {0.3}
    half = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.0), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    half[0].requires_grad_(False)
    made = compile(recipe(stage(half)), [Dropout(rate=0.5), CachePrefix()])
    assert [type(layer).__name__ for layer in made.stages[0].model] == ["Dropout", "Linear", "ReLU", "Linear"]


def prepared_text(technique, graft):
    g = torch.Generator().manual_seed(0)
    data = {"input_ids": torch.randint(50, (32, 5), generator=g), "attention_mask": torch.ones(32, 5, dtype=torch.long)}
    source = Tensors(data | {"y": torch.randint(4, (32,), generator=g)}, batch_size=16)
    source.inputs = dict.fromkeys(data, "id")
    return begun(compile(recipe(stage(graft, steps=2, source=source)), [technique]))


# ---- whole blocks


@pytest.mark.inventory("droppath", by="technique DropPath")
def test_blocks_are_skipped_at_the_rates_of_the_linear_rule_and_eval_is_deterministic():
    plain = MLP(width=16, depth=4, dropout=0.0).build((8,), 4)
    model, _ = prepared(DropPath(rate=0.4), plain)
    x, rates = torch.randn(4000, 8), drop_rates(4, 0.4)
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])
    outputs = {}
    for at, block in enumerate(model.blocks):
        block.register_forward_hook(lambda m, args, out, at=at: outputs.update({at: (args[0], out)}))
    torch.manual_seed(0)
    model.train()(x)
    for at, rate in enumerate(rates):
        taken, given = outputs[at]
        skipped = (taken == given).all(dim=1)
        assert abs(float(skipped.float().mean()) - rate) < 0.02, f"block {at}"
        full = model.blocks[at].forward(taken)  # without its hooks
        expected = taken + (full - taken) / (1 - rate)
        torch.testing.assert_close(given[~skipped], expected[~skipped], rtol=1e-4, atol=1e-5)
    fresh = MLP(width=16, depth=4, dropout=0.0).build((8,), 4).eval()
    assert torch.equal(model.eval()(x), fresh(x))


@pytest.mark.inventory("droppath", by="technique DropPath")
def test_it_finds_the_residual_blocks_of_transformers_and_of_residual_networks():
    bert, run = prepared_text(DropPath(rate=0.5), bert_graft(blocks=4, depths=(4,)))
    batch = next(iter(run.stage.source.batches(bert, 0)))
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    bert.train()
    torch.manual_seed(0)
    assert not torch.equal(bert(**inputs), bert(**inputs)), "no block was skipped"
    assert torch.equal(bert.eval()(**inputs), bert(**inputs))
    net = ConvNet(width=8, dropout=0.0).build((3, 8, 8), 4)
    model, _ = prepared(DropPath(rate=0.9), net, data=images())
    shapes = []
    for block in model.blocks:
        block.register_forward_hook(lambda m, args, out: shapes.append(args[0].shape == out.shape))
    model.train()(images()["x"])
    hooked = [len(block._forward_hooks) - 1 for block in model.blocks]  # one is the test's own
    assert [bool(count) for count in hooked] == shapes, (
        "a block that changes the shape is skipped, or one that does not is not"
    )
    with pytest.raises(Conflict, match="hands on the shape it takes"):
        compile(recipe(stage(mlp())), [DropPath()])


def test_the_mean_over_masks_is_the_block_itself():
    x, output = torch.randn(1, 3), torch.randn(1, 3)
    torch.manual_seed(0)
    many = drop_path(x.expand(20000, 3), output.expand(20000, 3), 0.3)
    torch.testing.assert_close(many.mean(0, keepdim=True), output, rtol=0.05, atol=0.05)


def test_low_rank_changes_are_put_into_blocks_that_are_skipped():
    _, run = prepared_text(DropPath(rate=0.5), bert_graft(blocks=2, depths=(2,)))
    chosen = stage(bert_graft(blocks=2, depths=(2,)), steps=2, source=run.stage.source)
    _, run = begun(compile(recipe(chosen), [LoRA(rank=2), DropPath(rate=0.5)]))
    hooked = [name for name, module in run.stage.model.named_modules() if module._forward_hooks]
    assert [name.rpartition(".")[2] for name in hooked] == ["0", "1"], "the surgery of LoRA lost the hooks"
    assert advance(run).clock.step == 2
    assert not any(module._forward_hooks for module in run.stage.model.modules()), "hooks stay when the stage is over"


def test_a_block_in_which_nothing_trains_drops_nothing_and_that_is_said():
    model = MLP(width=16, depth=3).build((8,), 4)
    for parameter in model.blocks[:2].parameters():
        parameter.requires_grad_(False)
    prepared_model, _ = prepared(DropPath(rate=0.6), model)
    assert [len(block._forward_hooks) for block in prepared_model.blocks] == [0, 0, 1]
    (hook,) = prepared_model.blocks[2]._forward_hooks.values()
    assert hook.rate == pytest.approx(0.6), "the rate of a block is that of its depth in the whole network"
    model.blocks.requires_grad_(False)
    model.stem.requires_grad_(False)
    for technique in (DropPath(), DropConnect()):
        with pytest.raises(Conflict, match="trains"):
            compile(recipe(stage(model)), [technique])


# ---- weights


@pytest.mark.inventory("dropconnect", by="technique DropConnect")
@pytest.mark.parametrize("rate", [0.2, 0.6])
def test_the_share_of_weights_that_is_masked_is_the_rate(rate):
    layer = nn.Linear(400, 300)
    torch.manual_seed(0)
    identity = weights_dropped(rate, layer.train(), torch.eye(400)) - layer.bias
    mask = identity.T
    assert abs(share_of_zeros(mask) - rate) < 0.01
    kept = mask != 0
    torch.testing.assert_close(mask[kept], (layer.weight / (1 - rate))[kept], rtol=1e-4, atol=1e-6)
    assert torch.equal(weights_dropped(rate, layer.eval(), torch.eye(400)), layer(torch.eye(400)))
    convolution = nn.Conv2d(8, 16, 3, padding=1)
    torch.manual_seed(0)
    point = torch.zeros(1, 8, 3, 3)
    point[:, :, 1, 1] = 1.0
    dropped = weights_dropped(rate, convolution.train(), point)
    assert dropped.shape == convolution(point).shape
    assert not torch.equal(dropped, convolution(point))


@pytest.mark.inventory("dropconnect", by="technique DropConnect")
def test_weights_are_dropped_while_a_stage_runs_and_never_after_it():
    chosen = stage(mlp(), steps=3)
    made = compile(recipe(chosen), [DropConnect(rate=0.5)])
    run = advance(start(made), 1)
    model, x = run.stage.model, torch.randn(8, 8)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
    advance(run)
    assert torch.equal(model.train()(x), model(x))
    plain = stage(mlp(), steps=3)
    fit(recipe(plain))
    assert not torch.equal(weights(plain.model), weights(chosen.model))
    only_head = nn.Sequential(nn.Linear(8, 4))
    with pytest.raises(Conflict, match="has no linear layer below its head"):
        compile(recipe(stage(only_head)), [DropConnect()])


# ---- whole features


@pytest.mark.inventory("spatial-dropout", by="technique SpatialDropout")
@pytest.mark.parametrize(
    ("shape", "reduced"), [((64, 32, 5, 5), (2, 3)), ((64, 7, 32), (1,)), ((64, 32, 2, 3, 4), (2, 3, 4))]
)
def test_whole_feature_maps_are_zeroed_at_the_rate(shape, reduced):
    x = torch.randn(shape) + 5.0
    torch.manual_seed(0)
    dropped = drop_features(x, 0.25)
    zero = (dropped == 0).float().mean(dim=reduced)
    assert set(zero.unique().tolist()) == {0.0, 1.0}, "a map was dropped in part"
    assert abs(float(zero.mean()) - 0.25) < 0.03
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], x[kept] / 0.75)


@pytest.mark.inventory("spatial-dropout", by="technique SpatialDropout")
def test_maps_of_a_convolutional_network_and_features_of_a_text_are_dropped_in_training_only():
    net = ConvNet(width=8, dropout=0.0).build((3, 8, 8), 4)
    model, run = prepared(SpatialDropout(rate=0.5), net, data=images())
    seen = []
    model.blocks[0].register_forward_hook(lambda m, args, out: seen.append(out))
    x = images()["x"]
    torch.manual_seed(0)
    model.train()(x)
    assert 0.3 < float((seen[0] == 0).all(dim=(2, 3)).float().mean()) < 0.75
    assert torch.equal(model.eval()(x), model(x))
    advance(run)
    assert not any(block._forward_hooks for block in model.blocks if block is not model.blocks[0])
    _, run = prepared_text(SpatialDropout(rate=0.5), bert_graft(blocks=2, depths=(2,)))
    advance(run)
    with pytest.raises(Conflict, match="hands on maps"):
        compile(recipe(stage(mlp(), data=blobs())), [SpatialDropout()])
