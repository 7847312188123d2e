"""Houlsby's two adapters a block and Pfeiffer's one, on the blocks of transformers, and the blocks one may choose."""

from __future__ import annotations

import pytest
import torch
import toy
from techniques.peft import tiny
from torch import nn

from regraft.config.parse import dump_one, parse_one
from regraft.core import compile, explain, fit
from regraft.errors import ConfigError, Conflict
from regraft.layers.bottleneck import Bottleneck, adapter_parameters
from regraft.models.placement import placed
from regraft.techniques.peft.adapter import Adapter
from regraft.techniques.peft.lora import LoRA

ENDS = {  # where attention and the feed-forward part end, in the lowest block
    "bert": ("encoder.layer.0.attention.output.dense", "encoder.layer.0.output.dense"),
    "roberta": ("encoder.layer.0.attention.output.dense", "encoder.layer.0.output.dense"),
    "gpt2": ("h.0.attn.c_proj", "h.0.mlp.c_proj"),
    "llama": ("layers.0.self_attn.o_proj", "layers.0.mlp.down_proj"),
    "vit": ("layers.0.attention.o_proj", "layers.0.mlp.fc2"),
}


def places(model: nn.Module) -> list[str]:
    return [name.removesuffix(".adapter") for name, part in model.named_modules() if isinstance(part, Bottleneck)]


def stirred(model: nn.Module) -> nn.Module:
    """The model with every `up` away from zero."""
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name in sorted(adapter_parameters(model)):
            if ".up." in name:
                model.get_parameter(name).normal_(0, 0.3, generator=g)
    return model


@pytest.mark.inventory("adapter-houlsby", by="technique Adapter: {kind: houlsby}")
@pytest.mark.parametrize("kind", tiny.ALL)
def test_houlsby_puts_two_into_each_block_the_identity_at_first_and_leaves_the_base_alone(kind):
    plain, inputs = tiny.graft(kind), tiny.inputs(kind)
    recipe = compile(toy.recipe(tiny.stage(kind)), [Adapter(kind="houlsby", width=4)])
    found = places(recipe.model)
    assert len(found) == 2 * 3
    assert found[:2] == [f"backbone.{name}" for name in ENDS[kind]]
    assert torch.equal(recipe.model.eval()(**inputs), plain(**inputs)), "not the identity at first"
    changed = tiny.changed(recipe, lambda: fit(recipe))
    assert changed == adapter_parameters(recipe.model) | {"head.weight", "head.bias"}


@pytest.mark.inventory("adapter-pfeiffer", by="technique Adapter: {kind: pfeiffer}")
@pytest.mark.parametrize("kind", tiny.ALL)
def test_pfeiffer_puts_one_into_each_block_the_identity_at_first(kind):
    plain, inputs = tiny.graft(kind), tiny.inputs(kind)
    recipe = compile(toy.recipe(tiny.stage(kind)), [Adapter(kind="pfeiffer", width=4)])
    assert places(recipe.model) == [block.name for block in placed(plain, "all", asked_by="test")]
    assert len(places(recipe.model)) == 3
    assert torch.equal(recipe.model.eval()(**inputs), plain(**inputs)), "not the identity at first"
    changed = tiny.changed(recipe, lambda: fit(recipe))
    assert changed == adapter_parameters(recipe.model) | {"head.weight", "head.bias"}


def bottleneck(adapter: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Houlsby et al., section 2.1, by hand."""
    down, up = adapter.down, adapter.up
    return x + torch.relu(x @ down.weight.T + down.bias) @ up.weight.T + up.bias


@pytest.mark.inventory("adapter-houlsby", "adapter-pfeiffer", by="technique Adapter")
@pytest.mark.parametrize("kind", ["houlsby", "pfeiffer"])
def test_a_block_of_bert_computes_the_figure_of_the_paper(kind):
    recipe = compile(toy.recipe(tiny.stage("bert")), [Adapter(kind=kind, width=4)])
    block = stirred(recipe.model).eval().backbone.encoder.layer[0]
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2))
    attended = block.attention.self(x)[0]
    dense = block.attention.output.dense
    attended = nn.functional.linear(attended, dense.weight, dense.bias)
    if kind == "houlsby":
        attended = bottleneck(dense.adapter, attended)
    middle = block.attention.output.LayerNorm(attended + x)
    dense = block.output.dense
    fed = nn.functional.linear(block.intermediate(middle), dense.weight, dense.bias)
    if kind == "houlsby":
        fed = bottleneck(dense.adapter, fed)
    by_hand = block.output.LayerNorm(fed + middle)
    if kind == "pfeiffer":
        by_hand = bottleneck(block.adapter, by_hand)
    got = block(x)
    torch.testing.assert_close(got if isinstance(got, torch.Tensor) else got[0], by_hand, rtol=1e-6, atol=1e-6)


def test_torchs_own_transformer_blocks_get_two_each():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(2, 8)
            self.blocks = nn.ModuleList(
                nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(2)
            )
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            h = self.stem(x.unflatten(1, (4, 2)))
            for block in self.blocks:
                h = block(h)
            return self.head(h.mean(1))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Own().eval()
    recipe = compile(toy.recipe(toy.stage(model)), [Adapter(kind="houlsby", width=2)])
    assert places(recipe.model) == [f"blocks.{i}.{end}" for i in range(2) for end in ("self_attn", "linear2")]
    x = toy.blobs()["x"]
    base = model(x)
    torch.testing.assert_close(recipe.model.eval()(x), base, rtol=0, atol=1e-6)  # hooks turn torch's fused path off
    assert not torch.allclose(stirred(recipe.model)(x), base, atol=1e-3)


@pytest.mark.inventory("adapter-placement-risk", by="technique LoRA or Adapter: {blocks: 2}")
@pytest.mark.parametrize("technique", ["LoRA", "Adapter"])
def test_where_they_go_is_a_field_of_the_recipe(technique):
    def blocks_with_parameters(placement) -> set[int]:
        spec = parse_one({technique: {"blocks": placement}}, "technique")
        assert parse_one(dump_one(spec), "technique") == spec
        recipe = compile(toy.recipe(tiny.stage("bert")), [spec])
        trained = {name for name in recipe.stages[0].trains or () if "head" not in name}
        return {int(name.split("layer.")[1].split(".")[0]) for name in trained}

    assert blocks_with_parameters("all") == {0, 1, 2}
    assert blocks_with_parameters(1) == {2}, "a number means so many of the top ones"
    assert blocks_with_parameters([1, 3]) == {0, 2}, "a list means these, counted from 1"
    with pytest.raises(ConfigError, match=rf"{technique}.blocks: the Graft has 3 blocks, got 4; give `all`"):
        blocks_with_parameters(4)


@pytest.mark.inventory("adapter-generic", by="technique Adapter, LoRA; regraft train, regraft explain")
@pytest.mark.parametrize("spec", [Adapter(width=4), Adapter(kind="houlsby", width=4), LoRA(rank=2)])
def test_the_share_that_trains_is_printed(spec):
    recipe = compile(toy.recipe(tiny.stage("bert")), [spec])
    trained = sum(p.numel() for name, p in recipe.model.named_parameters() if name in recipe.stages[0].trains)
    whole = sum(p.numel() for p in recipe.model.parameters())
    first = explain(recipe).splitlines()[0]
    assert first == f"stage toy: 4 steps, {trained:,} trainable parameters ({trained / whole:.2%} of {whole:,})"


def test_houlsby_is_refused_where_there_is_no_attention():
    with pytest.raises(Conflict, match=r"has no blocks of attention and a feed-forward part.*use `kind: pfeiffer`"):
        compile(toy.recipe(toy.stage()), [Adapter(kind="houlsby")])


def test_lora_says_when_targets_and_blocks_exclude_each_other():
    with pytest.raises(ConfigError, match="no layer of `targets` is in the blocks"):
        compile(toy.recipe(tiny.stage("bert")), [LoRA(targets="layer.0.*.query", blocks=1)])


@pytest.mark.inventory("adapter-placement-risk", by="regraft search (search.space: techniques.0.LoRA.blocks)")
@pytest.mark.parametrize("technique", ["LoRA", "Adapter", "PrefixTuning", "QLoRA"])
def test_a_search_can_range_over_where_they_go(technique):
    from regraft.search.space import Space

    options = ["all", 1, [1, 3]]
    tree = {
        "data": {"main": {"path": "data.csv"}},
        "models": {"main": {"name": "minilm"}},
        "stages": [{"name": "adapt", "steps": 5}],
        "techniques": [{technique: {}}],
    }
    space = Space({"techniques.0." + technique + ".blocks": {"choice": options}})
    drawn = list(space.grid(3))
    assert len(drawn) == 3
    found = [space.recipe(tree, each).techniques[0].blocks for each in drawn]
    assert found == ["all", 1, (1, 3)]
