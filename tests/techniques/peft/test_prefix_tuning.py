"""Prefix tuning against transformers' own past keys and values, peft, and the formula; what trains, and what it composes with."""

from __future__ import annotations

import copy
import pickle

import peft
import pytest
import torch
import toy
from techniques.peft import tiny
from torch import nn

from regraft.core import compile, fit
from regraft.errors import ConfigError, Conflict
from regraft.layers import prefix as layer
from regraft.layers.prefix import Prefix, Prefixes, prefix_parameters
from regraft.techniques.peft.prefix_tuning import PrefixTuning
from regraft.techniques.transfer.cache_prefix import CachePrefix


def prefixes(model: nn.Module) -> list[Prefix]:
    return [part for part in model.modules() if isinstance(part, Prefix)]


def compiled(kind: str, **options):
    return compile(toy.recipe(tiny.stage(kind)), [PrefixTuning(**{"tokens": 3} | options)])


def stirred(model: nn.Module) -> nn.Module:
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name in sorted(prefix_parameters(model)):
            model.get_parameter(name).normal_(0, 1, generator=g)
    return model.eval()


@pytest.mark.inventory("prefix-tuning", by="technique PrefixTuning")
@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("kind", tiny.ALL)
def test_every_layer_trains_keys_and_values_of_its_own_and_the_base_keeps_its_bits(kind, hidden):
    recipe = compiled(kind, hidden=hidden)
    heads = 1 if kind == "llama" else 2
    assert [tuple(part.shape) for p in prefixes(recipe.model) for part in p()] == [(heads, 3, 8)] * 6
    changed = tiny.changed(recipe, lambda: fit(recipe))
    assert changed == prefix_parameters(recipe.model) | {"head.weight", "head.bias"}
    assert all(not name.startswith("backbone") or ".prefix." in name for name in changed)


@pytest.mark.inventory("prefix-tuning", by="technique PrefixTuning")
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_decoder_gives_what_transformers_gives_with_these_as_past_keys_and_values(kind):
    from transformers import DynamicCache

    model = stirred(compiled(kind).model)
    given = tiny.inputs(kind)
    count, length = given["input_ids"].shape
    plain, past = tiny.bare(kind), DynamicCache()
    for index, part in enumerate(prefixes(model)):
        key, value = part()
        past.update(key.expand(count, -1, -1, -1), value.expand(count, -1, -1, -1), index)
    with torch.no_grad():
        want = plain(
            input_ids=given["input_ids"],
            attention_mask=nn.functional.pad(given["attention_mask"], (3, 0), value=1),
            position_ids=torch.arange(length).expand(count, -1),
            past_key_values=past,
        ).last_hidden_state
        got = model.backbone(**given).last_hidden_state
    real = given["attention_mask"].bool()
    torch.testing.assert_close(got[real], want[real], rtol=1e-5, atol=1e-6)


@pytest.mark.inventory("prefix-tuning", by="technique PrefixTuning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks transformers
@pytest.mark.parametrize("hidden", [0, 5])
def test_a_decoder_gives_what_peft_gives(hidden):
    model = stirred(compiled("gpt2", hidden=hidden).model)
    config = peft.PrefixTuningConfig(
        task_type="FEATURE_EXTRACTION", num_virtual_tokens=3, prefix_projection=bool(hidden), encoder_hidden_size=hidden
    )
    theirs = peft.get_peft_model(tiny.bare("gpt2"), config).eval()
    encoder = theirs.prompt_encoder["default"]
    with torch.no_grad():
        if hidden:  # theirs share all but the last layer of the perceptron
            first = prefixes(model)[0]
            for part in prefixes(model):
                part.start.copy_(first.start)
                part.inner.load_state_dict(first.inner.state_dict())
            encoder.embedding.weight.copy_(first.start)
            encoder.transform[0].load_state_dict(first.inner.state_dict())
            encoder.transform[2].weight.copy_(torch.cat([part.outer.weight for part in prefixes(model)]))
            encoder.transform[2].bias.copy_(torch.cat([part.outer.bias for part in prefixes(model)]))
        else:
            flat = [part.transpose(0, 1).flatten(1) for p in prefixes(model) for part in p()]
            encoder.embedding.weight.copy_(torch.cat(flat, dim=1))
        given = tiny.inputs("gpt2")
        count, length = given["input_ids"].shape
        got = model.backbone(
            **given, position_ids=torch.arange(3, 3 + length).expand(count, -1)
        )  # peft moves the words on
        want = theirs(**given)
    real = given["attention_mask"].bool()
    torch.testing.assert_close(got.last_hidden_state[real], want.last_hidden_state[real], rtol=1e-5, atol=1e-6)


@pytest.mark.inventory("prefix-tuning", by="technique PrefixTuning")
def test_an_encoders_attention_computes_the_formula():
    model = stirred(compiled("bert").model)
    attention = model.backbone.encoder.layer[0].attention.self
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[1.0, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).log().clamp(min=-1e30)[:, None, None, :]
    key, value = attention.prefix()

    def heads(layer: nn.Linear) -> torch.Tensor:
        return layer(x).view(2, 5, 2, 8).transpose(1, 2)

    keys = torch.cat([key.expand(2, -1, -1, -1), heads(attention.key)], 2)
    values = torch.cat([value.expand(2, -1, -1, -1), heads(attention.value)], 2)
    scores = heads(attention.query) @ keys.transpose(2, 3) / 8**0.5 + nn.functional.pad(mask, (3, 0))
    by_hand = (scores.softmax(-1) @ values).transpose(1, 2).reshape(2, 5, 16)
    torch.testing.assert_close(attention(x, attention_mask=mask)[0], by_hand, rtol=1e-5, atol=1e-6)


def test_prefixes_that_nobody_attends_to_change_nothing():
    for kind in tiny.ALL:
        model = compiled(kind).model.eval()
        with torch.no_grad():
            for part in prefixes(model):
                part.key.zero_()
                part.value.zero_()
            given = tiny.inputs(kind)
            near = model(**given)
            for part in prefixes(model):
                part.value.fill_(5.0)
        assert not torch.allclose(model(**given), near, atol=1e-3), f"{kind}: the prefix is not read"


def test_they_start_at_keys_and_values_of_the_first_real_tokens_of_the_data():
    recipe = compiled("bert")
    batch = next(iter(recipe.stages[0].source.batches(recipe.model)))
    plain = tiny.graft("bert").backbone
    words = plain.embeddings(batch["input_ids"][:1])
    want = plain.encoder.layer[0].attention.self.key(words)[0, :3]
    torch.testing.assert_close(prefixes(recipe.model)[0].key.transpose(0, 1).flatten(1), want, rtol=1e-5, atol=1e-6)


def test_more_virtual_tokens_than_real_ones_start_at_the_same_again():
    found = prefixes(compiled("vit", tokens=50).model)[0]
    assert found.key.shape == (2, 50, 8)
    seen = {"0": layer.Seen(torch.randn(1, 1, 2, 4), torch.randn(1, 1, 2, 4), torch.tensor([[[[0.0, -1e9]]]]))}
    model = nn.ModuleList([nn.Module()])
    model[0].add_module("prefix", Prefix(1, 4, 3))
    layer.start_from(model, seen)
    assert torch.equal(model[0].prefix.key[0], seen["0"].key[0, 0, :1].expand(3, -1)), "the masked token is none"


def test_packed_texts_all_see_the_prefix_and_not_each_other():
    plain = tiny.graft("bert")
    packed = tiny.graft("bert")
    packed.pack()
    outputs = []
    for graft in (plain, packed):
        model = compile(toy.recipe(tiny.stage("bert", model=graft)), [PrefixTuning(tokens=3)]).model
        outputs.append(stirred(model)(**tiny.inputs("bert")))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)


def test_blocks_below_the_lowest_prefix_are_stored_and_the_weights_are_the_same():
    weights = []
    for techniques in ([], [CachePrefix()]):
        recipe = compile(toy.recipe(tiny.stage("bert")), [PrefixTuning(tokens=3, blocks=1), *techniques])
        assert len(prefixes(recipe.model)) == 1
        report = fit(recipe)
        weights.append(recipe.model.state_dict())
    assert any("CachePrefix: the store held 32 examples" in note for note in report.notes)
    for (name, one), other in zip(weights[0].items(), weights[1].values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


def test_copies_and_pickles_use_their_own_prefixes():
    model = stirred(compiled("bert").model)
    given = tiny.inputs("bert")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(**given), model(**given))
        before = model(**given)
        with torch.no_grad():
            for part in prefixes(other):
                part.value.zero_()
        assert not torch.equal(other(**given), before)
        assert torch.equal(model(**given), before)


def test_the_description_rebuilds_it():
    model = stirred(compiled("llama", hidden=4, blocks=2).model)
    description = layer.describe(model)
    assert Prefixes.from_json(description.to_json()) == description
    again = layer.insert(tiny.graft("llama"), description).eval()
    again.load_state_dict(model.state_dict())
    given = tiny.inputs("llama")
    assert torch.equal(again(**given), model(**given))


def test_what_takes_no_prefix_is_refused_in_a_sentence():
    with pytest.raises(Conflict, match="PrefixTuning: Sequential holds no transformers network"):
        compile(toy.recipe(toy.stage()), [PrefixTuning()])
    with pytest.raises(ConfigError, match=r"PrefixTuning.blocks: the Graft has 3 blocks, got \[9\]"):
        compiled("bert", blocks=(9,))
