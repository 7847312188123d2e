"""Soft prompts and P-tuning against peft, and that they are read by every layer but pooled by none; what trains."""

from __future__ import annotations

import copy
import pickle

import peft
import pytest
import torch
import toy
from techniques.peft import tiny
from torch import nn

from regraft.core import compile, explain, fit
from regraft.errors import Conflict, ModelError
from regraft.layers import prompt as layer
from regraft.layers.prompt import Prompt, SoftPrompt, prompt_parameters
from regraft.models.pooling import pooled
from regraft.models.standard import StandardHead
from regraft.techniques.peft.prompt_tuning import PromptTuning, PTuning
from regraft.techniques.transfer.cache_prefix import CachePrefix

SPECS = {
    "prompt": PromptTuning(tokens=3),
    "lstm": PTuning(tokens=3, encoder="lstm", hidden=5),
    "mlp": PTuning(tokens=3, encoder="mlp", hidden=5),
}
HEAD = {"head.weight", "head.bias"}


def compiled(kind: str, spec="prompt", **stage):
    return compile(toy.recipe(tiny.stage(kind, **stage)), [SPECS[spec]])


def prompt_of(model: nn.Module) -> SoftPrompt:
    return next(part for part in model.modules() if isinstance(part, SoftPrompt))


@pytest.mark.inventory("prompt-tuning", by="technique PromptTuning")
@pytest.mark.parametrize("kind", tiny.TEXT)
def test_only_the_virtual_tokens_and_the_head_train(kind):
    recipe = compiled(kind)
    assert [tuple(p.shape) for p in prompt_of(recipe.model).parameters()] == [(3, 16)]
    changed = tiny.changed(recipe, lambda: fit(recipe))
    assert changed - HEAD == prompt_parameters(recipe.model)
    assert len(changed - HEAD) == 1
    whole = sum(p.numel() for p in recipe.model.parameters())
    trained = 3 * 16 + sum(p.numel() for p in recipe.model.head.parameters())
    assert f"{trained:,} trainable parameters ({trained / whole:.2%}" in explain(recipe)


@pytest.mark.inventory("p-tuning", by="technique PTuning")
@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
@pytest.mark.parametrize("kind", tiny.TEXT)
def test_the_prompt_encoder_and_the_head_train_and_the_base_keeps_its_bits(kind, encoder):
    recipe = compiled(kind, encoder)
    changed = tiny.changed(recipe, lambda: fit(recipe))
    assert changed - HEAD == prompt_parameters(recipe.model)
    assert any(".mlp." in name for name in changed), "the encoder does not train"
    assert any(".lstm." in name for name in changed) == (encoder == "lstm")
    assert any(name.endswith("prompt.tokens") for name in changed)


def theirs(kind: str, spec: str):
    """Peft's model of the same method."""
    common = {"task_type": "FEATURE_EXTRACTION", "num_virtual_tokens": 3}
    if spec == "prompt":
        config = peft.PromptTuningConfig(**common)
    else:
        config = peft.PromptEncoderConfig(
            **common, encoder_reparameterization_type=spec.upper(), encoder_hidden_size=5, encoder_dropout=0.0
        )
    return peft.get_peft_model(tiny.bare(kind), config).eval()


@pytest.mark.inventory("prompt-tuning", "p-tuning", by="technique PromptTuning, PTuning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks transformers
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", tiny.TEXT)
def test_every_token_gets_the_numbers_that_peft_gives_it(kind, spec):
    model = compiled(kind, spec).model.eval()
    other = theirs(kind, spec)
    ours, encoder = prompt_of(model), other.prompt_encoder["default"]
    with torch.no_grad():
        encoder.embedding.weight.copy_(ours.tokens)
        if spec != "prompt":
            encoder.mlp_head.load_state_dict(ours.mlp.state_dict())
        if spec == "lstm":
            encoder.lstm_head.num_layers = 2
            other.prompt_encoder["default"].lstm_head = copy.deepcopy(ours.lstm)
        given = tiny.inputs(kind)
        want = other(**given).last_hidden_state[:, 3:]
        got = model.backbone(**given).last_hidden_state
    real = given["attention_mask"].bool()
    assert got.shape == want.shape
    torch.testing.assert_close(got[real], want[real], rtol=1e-5, atol=1e-6)


@pytest.mark.inventory("prompt-tuning", by="technique PromptTuning")
@pytest.mark.parametrize("kind", tiny.TEXT)
def test_nothing_is_pooled_over_virtual_tokens(kind):
    pools = ("mean", "max", "last") if kind in ("gpt2", "llama") else ("mean", "max", "first")
    graft = tiny.graft(kind, depths=(0, 2, 3), pools=pools)
    model = compiled(kind, model=graft).model.eval()
    given = tiny.inputs(kind)
    mask = given["attention_mask"]
    seen: dict[str, torch.Tensor] = {}
    for depth in (2, 3):
        name = model.boundary(depth).name
        model.backbone.get_submodule(name).register_forward_hook(
            lambda m, a, out, depth=depth: seen.update({depth: out if isinstance(out, torch.Tensor) else out[0]})
        )
    features = model.features(**given)
    assert seen[2].shape[1] == 3 + mask.shape[1], "the layers see the virtual tokens"
    by_hand = [pooled(seen[depth][:, 3:], pool, mask) for depth in (2, 3) for pool in pools]
    torch.testing.assert_close(features[:, 16 * len(pools) :], torch.cat(by_hand, 1))


def test_a_prompt_that_changes_changes_what_every_token_becomes():
    model = compiled("bert").model.eval()
    given = tiny.inputs("bert")
    real = given["attention_mask"].bool()
    with torch.no_grad():
        before = model.backbone(**given).last_hidden_state[real]
        prompt_of(model).tokens.normal_(generator=torch.Generator().manual_seed(0))
        after = model.backbone(**given).last_hidden_state[real]
    assert ((after - before).abs().amax(-1) > 1e-4).all(), "some token does not see the prompt"


def test_it_starts_at_words_of_the_vocabulary_drawn_from_its_seed():
    table = tiny.graft("bert").backbone.embeddings.word_embeddings.weight
    found = [
        prompt_of(compile(toy.recipe(tiny.stage("bert")), [PromptTuning(tokens=5, seed=s)]).model) for s in (0, 0, 1)
    ]
    assert torch.equal(found[0].tokens, found[1].tokens)
    assert not torch.equal(found[0].tokens, found[2].tokens)
    assert all(bool((table == vector).all(1).any()) for vector in found[0].tokens)


def test_nothing_below_a_prompt_is_frozen_so_nothing_is_stored():
    weights = []
    for techniques in ([], [CachePrefix()]):
        recipe = compile(toy.recipe(tiny.stage("bert")), [SPECS["prompt"], *techniques])
        report = fit(recipe)
        weights.append(recipe.model.state_dict())
    assert not report.notes
    assert all(torch.equal(one, other) for one, other in zip(*(w.values() for w in weights), strict=True))


@pytest.mark.parametrize("spec", SPECS)
def test_copies_pickles_and_descriptions_give_the_same_bits(spec):
    recipe = compiled("bert", spec)
    fit(recipe)
    model, given = recipe.model.eval(), tiny.inputs("bert")
    description = layer.describe(model)
    assert Prompt.from_json(description.to_json()) == description
    again = layer.insert(tiny.graft("bert"), description).eval()
    again.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), again):
        assert torch.equal(other(**given), model(**given))
        with torch.no_grad():
            prompt_of(other).tokens.zero_()
        assert not torch.equal(other(**given), model(**given))


def test_what_takes_no_prompt_is_refused_in_a_sentence():
    from transformers import BertConfig, BertForSequenceClassification

    with pytest.raises(Conflict, match="PromptTuning: Sequential holds no transformers network of texts"):
        compile(toy.recipe(toy.stage()), [PromptTuning()])
    with pytest.raises(Conflict, match="PTuning: Graft holds no transformers network of texts"):
        compile(toy.recipe(tiny.stage("vit")), [PTuning()])
    packed = tiny.graft("bert")
    packed.pack()
    with pytest.raises(Conflict, match="leave `packing` out, or use PrefixTuning"):
        compiled("bert", model=packed)
    whole = BertForSequenceClassification(BertConfig(**tiny.SIZES, num_labels=4))
    standard = StandardHead(whole, inputs=("input_ids", "attention_mask"), name="tiny", modality="text")
    with pytest.raises(Conflict, match="has its own head, which would read a virtual one; leave `head: standard` out"):
        compiled("bert", model=standard)


def test_a_text_and_a_prompt_that_are_too_long_together_are_told_of():
    with pytest.raises(
        Conflict, match="35 virtual tokens and texts of 10 are more than the 40 positions of the BertModel"
    ):
        compile(toy.recipe(tiny.stage("bert")), [PromptTuning(tokens=35)])
    model = compiled("roberta").model.eval()
    ids = torch.full((1, 36), 5)
    with pytest.raises(ModelError, match=r"texts of 36 are more than the 38 positions.*max_length to 35 or less"):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert model(input_ids=ids[:, :35], attention_mask=torch.ones_like(ids[:, :35])).shape == (1, 4)


@pytest.mark.parametrize("kind", ["opt", "bart", "roberta", "bert"])
def test_the_room_is_the_number_of_tokens_that_transformers_can_place(kind):
    network = tiny.bare(kind)
    room = layer._room(network)
    assert room == (38 if kind == "roberta" else 40)
    ids = torch.full((1, room), 5)
    network(input_ids=ids, attention_mask=torch.ones_like(ids))
    more = torch.full((1, room + 1), 5)
    with pytest.raises((IndexError, RuntimeError)):
        network(input_ids=more, attention_mask=torch.ones_like(more))


@pytest.mark.parametrize("spec", SPECS)
def test_the_flops_of_a_prompted_network_can_be_counted(spec):
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for model in (tiny.graft("bert"), compiled("bert", spec).model.eval()):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(**tiny.inputs("bert"))
        counts.append(counter.get_total_flops())
    assert counts[1] > counts[0]
