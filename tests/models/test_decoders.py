from __future__ import annotations

import random
import runpy
import warnings

import numpy as np
import pytest
import torch

import regraft as rg
from regraft.config.recipe import ModelSpec
from regraft.data.text import TextPreprocessor
from regraft.errors import ModelError
from regraft.models.backbone import boundaries
from regraft.models.blocks import blocks
from regraft.models.causal import is_causal
from regraft.models.freeze import freeze
from regraft.models.graft import Graft
from regraft.models.load import load_backbone, require_encoder
from regraft.models.pooling import last_token, pooled
from regraft.models.save import load_model, save_model
from regraft.models.standard import load_standard

WORDS = [
    "good",
    "fine",
    "warm",
    "bright",
    "bad",
    "poor",
    "cold",
    "dull",
    "film",
    "play",
    "the",
    "a",
    "is",
    "was",
    "and",
    "so",
]
LLAMA = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
SIZES = {"Llama": LLAMA | {"intermediate_size": 64}, "GPT2": GPT2}


@pytest.fixture(params=SIZES, scope="module")
def folder(request, tmp_path_factory):
    """A folder with a tiny decoder of random weights, saved with its language-model head, and a tokenizer without padding."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    place = tmp_path_factory.mktemp(request.param)
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "[END]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="[END]").save_pretrained(
        place
    )
    config = getattr(transformers, f"{request.param}Config")(
        vocab_size=len(vocabulary), bos_token_id=1, eos_token_id=1, **SIZES[request.param]
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        name = {"Llama": "LlamaForCausalLM", "GPT2": "GPT2LMHeadModel"}[request.param]
        getattr(transformers, name)(config).save_pretrained(place)
    return place


def sentences(count, seed=0):
    """Texts of 3 to 9 words and whether they hold a good word or a bad one."""
    draw = random.Random(seed)
    labels = [draw.choice(["good", "bad"]) for _ in range(count)]
    tone = {"good": WORDS[:4], "bad": WORDS[4:8]}
    texts = []
    for label in labels:
        words = draw.choices(WORDS[8:], k=draw.randint(2, 8))
        words.insert(draw.randint(0, len(words)), draw.choice(tone[label]))
        texts.append(" ".join(words))
    return texts, labels


def encoded(folder, texts):
    """A padded batch of texts."""
    made = TextPreprocessor.from_model(folder, columns=("text",)).encode({"text": texts})
    return made.collate(np.arange(len(texts)))


# ---- pooling


def test_the_last_token_is_the_last_whose_mask_is_one_and_zero_without_any():
    tokens = torch.randn(4, 5, 3, dtype=torch.bfloat16)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]])
    got = last_token(tokens, mask)
    for row, at in ((0, 4), (1, 1), (2, 3)):
        assert torch.equal(got[row], tokens[row, at].float())
    assert not got[3].any()
    assert torch.equal(pooled(tokens, "last"), tokens[:, 4].float())


def test_gradient_of_the_last_token_reaches_that_token_alone():
    tokens = torch.randn(2, 4, 3, requires_grad=True)
    last_token(tokens, torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])).sum().backward()
    assert torch.equal(tokens.grad.sum(2), torch.tensor([[0.0, 3.0, 0.0, 0.0], [0.0, 0.0, 0.0, 3.0]]))


# ---- backbones


def test_blocks_and_boundaries_of_a_decoder_end_with_its_final_norm(folder):
    backbone = load_backbone(str(folder), modality="text")
    places = backbone.boundaries()
    assert [place.depth for place in places] == [0, 1, 2, 3]
    assert {place.kind for place in places} == {"causal"}
    assert places[-1].name in ("norm", "ln_f")
    assert len(blocks(backbone.module)) == 3
    assert not backbone.module.config.use_cache
    require_encoder(str(folder), modality="text")


def test_features_of_a_text_do_not_depend_on_its_padding_and_last_is_what_the_decoder_hands_out(folder):
    backbone = load_backbone(str(folder), modality="text")
    graft = Graft(backbone, depths=[0, 2, 3], pools=["mean", "max", "last"], num_outputs=2).eval()
    texts, _ = sentences(6)
    together = encoded(folder, texts)
    assert together["attention_mask"].sum(1).min() < together["attention_mask"].shape[1]
    alone = [encoded(folder, [text]) for text in texts]
    want = torch.cat([graft.features(**one) for one in alone])
    assert torch.allclose(graft.features(**together), want, atol=1e-5)
    handed_out = [backbone.module(**one).last_hidden_state[0, -1] for one in alone]
    got = graft.all_features(**together)[3, "last"]
    assert torch.allclose(got, torch.stack(handed_out), atol=1e-5)


def test_the_first_token_of_a_decoder_is_no_pooling(folder):
    backbone = load_backbone(str(folder), modality="text")
    with pytest.raises(
        ModelError, match="the tokens of a decoder cannot be pooled by 'first'; one of: last, max, mean"
    ):
        Graft(backbone, depths=[1], pools=["first"], num_outputs=2)


def test_lower_depths_of_a_decoder_are_read_and_the_rest_cut_off(folder):
    backbone = load_backbone(str(folder), modality="text")
    graft = Graft(backbone, depths=[1], pools=["last"], num_outputs=2).eval()
    batch = encoded(folder, sentences(5)[0])
    want = graft(**batch)
    assert graft.cut_above() > 0
    assert len(blocks(graft.backbone)) == 1
    assert torch.equal(graft(**batch), want)


def test_a_saved_decoder_loads_to_the_same_bits_with_regraft_and_with_plain_transformers(folder, tmp_path, monkeypatch):
    backbone = load_backbone(str(folder), modality="text")
    graft = Graft(backbone, depths=[2, 3], pools=["mean", "last"], num_outputs=2).eval()
    batch = encoded(folder, sentences(5)[0])
    at = save_model(graft, tmp_path / "m", preprocessor_json={}, labels=["a", "b"], task="multiclass")
    loaded, info = load_model(at)
    assert torch.equal(loaded(**batch), graft(**batch))
    assert info["loads_plainly"]
    code = (at / "README.md").read_text().split("```python\n")[1].split("```")[0]
    (at / "run.py").write_text(code.replace("an example", "the film is good"))
    monkeypatch.chdir(at)
    warnings.simplefilter("ignore", ResourceWarning)  # the page opens its files in one line
    logits = runpy.run_path("run.py")["logits"]
    assert torch.allclose(logits, graft(**encoded(folder, ["the film is good"])), atol=1e-6)


def test_a_decoder_learns_with_a_head_and_with_all_its_weights(folder):
    texts, labels = sentences(64)
    batch, targets = encoded(folder, texts), torch.tensor([label == "good" for label in labels]).long()
    final = {}
    for trains in ("head", "all"):
        graft = Graft(load_backbone(str(folder), modality="text"), depths=[3], pools=["last"], num_outputs=2).eval()
        if trains == "head":
            freeze(graft.backbone, depth=3)
        optimizer = torch.optim.AdamW([p for p in graft.parameters() if p.requires_grad], lr=1e-2)
        losses = []
        for _ in range(30):
            loss = torch.nn.functional.cross_entropy(graft(**batch), targets)
            losses.append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert losses[-1] < losses[0]
        final[trains] = losses[-1]
    assert final["all"] < final["head"]


# ---- which models are decoders


def test_a_model_type_with_a_masked_language_model_is_an_encoder_unless_it_says_otherwise():
    import transformers

    assert not is_causal(transformers.BertConfig())
    assert is_causal(transformers.BertConfig(is_decoder=True))
    assert is_causal(transformers.LlamaConfig())
    assert not is_causal(transformers.ViTConfig())
    assert not is_causal(None)


def test_a_network_that_keeps_its_tokens_in_front_is_refused():
    import transformers

    model = transformers.XLNetModel(
        transformers.XLNetConfig(d_model=16, n_layer=2, n_head=2, d_inner=16, vocab_size=50)
    ).eval()
    example = {"input_ids": torch.ones(2, 8, dtype=torch.long), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    with pytest.raises(ModelError, match=r"layer\.0 of XLNetModel returns \(8, 2, 16\) for \(2, 8\) tokens"):
        boundaries(model, example)


def test_a_decoder_is_refused_for_images_and_with_a_standard_head(folder):
    with pytest.raises(ModelError, match="is not a vision model"):
        load_backbone(str(folder), modality="image")
    with pytest.raises(ModelError, match=r"is a decoder model .* which is not adapted with `head: standard`"):
        load_standard(str(folder), modality="text", num_outputs=2)


def test_encoder_decoders_stay_refused(tmp_path):
    import transformers

    config = transformers.T5Config(vocab_size=10, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    transformers.T5Model(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is an encoder-decoder model \(t5\), which cannot be adapted"):
        require_encoder(str(tmp_path), modality="text")


# ---- the main job


def written(place, texts, targets):
    """A file with texts and targets."""
    rows = ["text\ttarget", *(f"{text}\t{target}" for text, target in zip(texts, targets, strict=True))]
    (place / "d.tsv").write_text("\n".join(rows) + "\n")
    return place / "d.tsv"


@pytest.mark.parametrize("packing", [False, True])
def test_the_main_job_runs_on_a_decoder_and_its_model_predicts(folder, tmp_path, packing):
    data = written(tmp_path, *sentences(160))
    model = ModelSpec(name=str(folder), packing=packing)
    run = rg.adapt(data, model=model, label="target", out=tmp_path / "run", budget="10m", strategy="probe")
    assert len(run.predict(["the film is good", "a play so bad"])) == 2


def test_numbers_are_predicted_from_a_decoder(folder, tmp_path):
    texts, labels = sentences(160)
    data = written(tmp_path, texts, [(3.1 if label == "good" else 1.4) + i / 1000 for i, label in enumerate(labels)])
    options = {"label": "target", "task": "regression", "budget": "10m", "strategy": "probe"}
    run = rg.adapt(data, model=str(folder), out=tmp_path / "run", **options)
    low, high = run.predict(["the film is bad and so cold", "the film is good and so warm"])
    assert low.value < high.value


@pytest.mark.filterwarnings(
    "ignore:fan_in_fan_out is set to False"
)  # peft's word on GPT-2, whose layers are transposed
@pytest.mark.parametrize("technique", ["LoRA", "Adapter", "NormOnly", "LastK", "StagedThaw", "Discriminative"])
def test_techniques_of_the_race_train_a_packed_decoder(folder, tmp_path, technique):
    recipe = tmp_path / "recipe.yaml"
    data = written(tmp_path, *sentences(60))
    recipe.write_text(
        f"data: {{main: {{path: {data}, label: [target]}}}}\nmodels: {{main: {{name: {folder}, packing: true}}}}\n"
        f"train: {{batch_size: 8}}\nstages: [{{name: adapt, steps: 6}}]\ntechniques: [{technique}]\n"
    )
    run = rg.train(recipe, out=tmp_path / "run")
    assert len(run.predict(["the film is good"])) == 1


@pytest.mark.slow
def test_a_trained_decoder_of_stories_tells_more_than_chance(shared_data, tmp_path):
    lines = (shared_data("sst2") / "train.tsv").read_text().splitlines()
    (tmp_path / "d.tsv").write_text("\n".join(lines[:1501]) + "\n")
    folder = str(shared_data("stories260k") / "hf")
    run = rg.adapt(
        tmp_path / "d.tsv", model=folder, label="label", out=tmp_path / "run", budget="10m", strategy="probe"
    )
    labels = [line.split("\t")[1] for line in lines[1501:2301]]
    got = [each.label for each in run.predict([line.split("\t")[0] for line in lines[1501:2301]])]
    assert np.mean([a == b for a, b in zip(got, labels, strict=True)]) > 0.55  # chance: 0.5 with an error of 0.018
