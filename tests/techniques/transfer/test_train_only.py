"""TrainOnly and its kin: exactly the chosen parameters and the head change, and nothing drifts."""

from __future__ import annotations

import pytest
import torch
import toy
from torch import nn

from regraft.core import compile, explain, fit
from regraft.errors import ConfigError
from regraft.models.anatomy import block_kinds, norm_parameters
from regraft.models.blocks import layer_groups
from regraft.models.parts import parts_of
from regraft.optim.optimizers import AdamW
from regraft.techniques.transfer.train_only import AttentionOnly, BitFit, FFNOnly, NormOnly, TrainOnly


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.batch, self.group = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
        self.linear, self.layer, self.root = nn.Linear(64, 8), nn.LayerNorm(8), nn.RMSNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.group(self.batch(self.conv(x)))).flatten(1)
        return self.head(self.root(self.layer(self.linear(x))))


def made(technique):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mixed()
    data = toy.blobs(n=64, dim=16)
    source = toy.Tensors({"x": data["x"].reshape(64, 1, 4, 4) + 3.0, "y": data["y"]})
    update = toy.descent(AdamW(lr=0.01, weight_decay=0.5))
    return compile(toy.recipe(toy.stage(model, source=source, steps=5, update=update)), [technique])


def changed_by(recipe):
    before = {name: value.clone() for name, value in recipe.model.state_dict().items()}
    report = fit(recipe)
    return {name for name, value in recipe.model.state_dict().items() if not torch.equal(value, before[name])}, report


NORMS = {"batch.weight", "batch.bias", "group.weight", "group.bias", "layer.weight", "layer.bias", "root.weight"}
HEAD = {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("technique", "expected"),
    [
        pytest.param(
            NormOnly(), NORMS, marks=pytest.mark.inventory("layernorm-tuning", by="technique NormOnly"), id="norms"
        ),
        pytest.param(NormOnly(biases=True), NORMS | {"conv.bias", "linear.bias"}, id="norms-and-biases"),
        pytest.param(BitFit(), {name for name in NORMS if "bias" in name} | {"conv.bias", "linear.bias"}, id="biases"),
        pytest.param(
            TrainOnly(parameters=["conv.*", "*.bias"], kind="norm"),
            NORMS | {"conv.weight", "conv.bias", "linear.bias"},
            marks=pytest.mark.inventory("partial-ft", by="technique TrainOnly"),
            id="patterns-and-a-kind",
        ),
    ],
)
def test_exactly_what_is_chosen_and_the_head_change_and_running_statistics_stay(technique, expected):
    recipe = made(technique)
    changed, report = changed_by(recipe)
    assert changed == expected | HEAD
    count = sum(recipe.model.get_parameter(name).numel() for name in changed)
    total = sum(p.numel() for p in recipe.model.parameters())
    by = type(technique).__name__
    assert report.notes[0].startswith(f"{by} trains {count:,} of {total:,} parameters ({100 * count / total:.2f} %)")
    assert f"{count:,} trainable parameters" in explain(recipe)


def test_batch_norm_normalises_by_its_running_statistics_in_training():
    recipe = made(NormOnly())
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


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {**SMALL, "vocab_size": 50, "max_position_embeddings": 32}
GPT2 = {
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 32,
    "vocab_size": 50,
    "n_inner": 24,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IMAGE = {**SMALL, "image_size": 16, "patch_size": 8}
FAMILIES = {  # name -> configuration, what its attention and its feed-forward parts are called by those who wrote it
    "Bert": (TEXT, (".attention.",), (".intermediate.", ".output.dense")),
    "Roberta": (TEXT, (".attention.",), (".intermediate.", ".output.dense")),
    "GPT2": (GPT2, (".attn.",), (".mlp.",)),
    "Llama": ({**TEXT, "num_key_value_heads": 1}, (".self_attn.",), (".mlp.",)),
    "ViT": (IMAGE, (".attention.",), (".mlp.", ".intermediate.", ".output.dense")),
    "DeiT": (IMAGE, (".attention.",), (".mlp.", ".intermediate.", ".output.dense")),
}


def transformer(family):
    """A tiny model with random weights, and a batch for it."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family][0])
    model = getattr(transformers, f"{family}Model")(config).eval()
    if "image_size" in FAMILIES[family][0]:
        return model, {"pixel_values": torch.randn(2, 3, 16, 16)}
    return model, {"input_ids": torch.randint(5, 40, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.long)}


@pytest.mark.inventory("ffn-or-attn-ft", by="techniques AttentionOnly, FFNOnly")
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_and_feed_forward_layers_are_told_apart_without_their_names(family):
    model, batch = transformer(family)
    _, attention, feed_forward = FAMILIES[family]
    found = block_kinds(model, lambda m: m(**batch))
    norms = set(norm_parameters(model))
    inside = [name for block in layer_groups(model)[1:-2] for name in block if name not in norms]
    by_name = {name for name in inside if any(part in name for part in attention)}
    assert found.attention == by_name
    assert found.ffn == {n for n in inside if n not in by_name and any(part in n for part in feed_forward)}
    assert found.attention | found.ffn == set(inside)
    sizes = [sum(model.get_parameter(n).numel() for n in names) for names in (found.attention, found.ffn)]
    assert min(sizes) > 0
    assert sum(sizes) < sum(p.numel() for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_attention_of_torch_itself_and_a_wrapper_around_a_block_are_seen_through():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)

        def forward(self, x):
            return self.inner(x)

    model = nn.Sequential(Wrapped(), Wrapped(), nn.Linear(8, 2))
    found = block_kinds(model, lambda m: m(torch.randn(2, 5, 8)))
    assert {name.split(".", 2)[2].partition(".")[0] for name in found.attention} == {"self_attn"}
    assert {name.split(".", 2)[2].partition(".")[0] for name in found.ffn} == {"linear1", "linear2"}


@pytest.mark.parametrize(
    ("technique", "moves"), [(AttentionOnly(), "attention"), (FFNOnly(), "ffn"), (TrainOnly(kind="embeddings"), "stem")]
)
@pytest.mark.inventory("ffn-or-attn-ft", by="techniques AttentionOnly, FFNOnly, TrainOnly")
def test_only_the_chosen_part_of_a_transformer_changes(technique, moves):
    model = toy.bert_graft(blocks=2, depths=(2,))
    batch = {"input_ids": torch.randint(1, 40, (16, 6)), "attention_mask": torch.ones(16, 6, dtype=torch.long)}
    kinds = block_kinds(model, lambda m: m(**m.example))

    class Texts(toy.Source):
        inputs = dict.fromkeys(batch, "id")

        def batches(self, model, start=0):
            while True:
                yield {**batch, "y": torch.arange(16) % 4}

    stage = toy.stage(model, source=Texts(), steps=3, update=toy.descent(AdamW(lr=0.01, weight_decay=0.5)))
    changed, _ = changed_by(compile(toy.recipe(stage), [technique]))
    norms = set(norm_parameters(model))
    expected = {n for n in parts_of(model).stem if n not in norms} if moves == "stem" else getattr(kinds, moves)
    keys = {n for n in expected if n.endswith("key.bias")}  # softmax does not see what is added to all keys alike
    assert expected - keys <= changed - HEAD <= expected
    assert changed >= HEAD


def test_a_model_without_the_kind_is_refused():
    with pytest.raises(ConfigError, match="has no normalisation layers to train; choose another technique"):
        compile(toy.recipe(toy.stage()), [NormOnly()])
    with pytest.raises(
        ConfigError, match="AttentionOnly: no part of a block of the Sequential in stage 'toy' mixes tokens"
    ):
        compile(toy.recipe(toy.stage()), [AttentionOnly()])


def test_a_pattern_that_names_nothing_and_an_empty_choice_are_refused():
    with pytest.raises(
        ConfigError, match=r"TrainOnly.parameters: '0.wieght' matches no parameter .*did you mean '0.weight'"
    ):
        compile(toy.recipe(toy.stage()), [TrainOnly(parameters="0.wieght")])
    with pytest.raises(ConfigError, match="TrainOnly: give a `kind` or `parameters`"):
        TrainOnly()


def test_a_kind_that_the_network_has_not_got_is_refused_beside_others():
    plain = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with pytest.raises(ConfigError, match=r"TrainOnly.kind: .* has no normalisation layers to train; leave norm out"):
        compile(toy.recipe(toy.stage(plain)), [TrainOnly(kind=("norm", "bias"))])
    report = fit(compile(toy.recipe(toy.stage(plain, steps=1)), [NormOnly(biases=True)]))
    assert any(note.endswith(": biases and the head") for note in report.notes)
