"""Tiny stand-ins of the well-known language models, trained end to end; what is forgotten is in each report."""

from __future__ import annotations

import json
import random

import pytest
import torch

from regraft.config.recipe import parse_recipe
from regraft.phases.predict import load
from regraft.phases.train import train_job

WORDS = ["good", "fine", "bad", "poor", "film", "play", "the", "a", "is", "was"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
FAMILIES = {
    "Bert": ("BertModel", SMALL | {"max_position_embeddings": 64}),
    "Roberta": ("RobertaModel", SMALL | {"max_position_embeddings": 64, "pad_token_id": 0}),
    "GPT2": ("GPT2LMHeadModel", GPT2 | {"bos_token_id": 2, "eos_token_id": 2}),
    "Llama": ("LlamaForCausalLM", SMALL | {"bos_token_id": 2, "eos_token_id": 2}),
}


def checkpoint(folder, family):
    """A model of random weights with a tokenizer of words, as save_pretrained leaves them."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[END]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", eos_token="[END]"
    ).save_pretrained(folder)
    name, options = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(vocab_size=len(vocabulary), **options)
        getattr(transformers, name)(config).save_pretrained(folder)
    return folder


def texts(file, *, seed, labels=("good", "bad")):
    """Sentences that hold a good word or a bad one, as a table."""
    draw = random.Random(seed)
    rows = ["text,label"]
    for number in range(60):
        label = labels[number % 2]
        words = draw.choices(WORDS[4:], k=4)
        words.insert(draw.randint(0, 4), draw.choice(WORDS[:2] if number % 2 == 0 else WORDS[2:4]))
        rows.append(f"{' '.join(words)},{label}")
    file.write_text("\n".join(rows) + "\n")
    return file


def trained(tmp_path, family, **data):
    recipe = {
        "data": {"main": {"path": str(texts(tmp_path / "main.csv", seed=0))}, **data},
        "models": {"main": {"name": str(checkpoint(tmp_path / family, family))}},
        "train": {"optimizer": {"AdamW": {"lr": 0.01}}, "batch_size": 16},
        "stages": [{"name": "adapt", "steps": 4}],
        "techniques": [{"LastK": {"blocks": 1}}],
    }
    return train_job(parse_recipe(json.dumps(recipe)), tmp_path / "run")


@pytest.mark.inventory("backbone-nlp", by="models.main.name: a folder of BERT, RoBERTa, GPT-2 or Llama")
@pytest.mark.inventory("catastrophic-forgetting", by="regraft train")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stand_in_is_trained_saved_and_predicts_and_its_report_says_that_the_source_is_not_measured(tmp_path, family):
    run = trained(tmp_path, family)
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert 0 <= metrics["final"]["test"]["accuracy"]["value"] <= 1
    section = metrics["forgetting"]
    assert section["measured"]
    assert section["source"] is None
    assert section["drift"]["by_depth"]["1"] == pytest.approx(0, abs=1e-6), "LastK leaves the lower block as it was"
    assert section["drift"]["top"] > 1e-4
    report = (run.path / "report.html").read_text()
    assert "What was forgotten" in report
    assert "the recipe names no data of it" in report
    (tmp_path / "new.csv").write_text("text\nthe film was good\n")
    (prediction,) = [each for part in load(run.path).predict_file(tmp_path / "new.csv") for each in part]
    assert prediction.label in ("good", "bad")


@pytest.mark.inventory("catastrophic-forgetting", by="data.source")
def test_with_source_data_of_other_classes_the_metric_before_and_after_is_in_the_report(tmp_path):
    source = texts(tmp_path / "source.csv", seed=5, labels=("warm", "cold"))
    run = trained(tmp_path, "Bert", source={"path": str(source)})
    section = json.loads((run.path / "metrics.json").read_text())["forgetting"]
    assert section["source"]["change"] == pytest.approx(section["source"]["after"] - section["source"]["before"])
    assert section["source"]["metric"].startswith("accuracy of a linear probe")
    report = (run.path / "report.html").read_text()
    assert "Source domain, before" in report
    assert "Source domain, after" in report


@pytest.mark.inventory("backbone-gen", by="models.main.name: a folder of Llama weights")
def test_the_llama_of_the_shared_data_is_adapted_end_to_end(tmp_path, shared_data):
    recipe = {
        "data": {"main": {"path": str(texts(tmp_path / "main.csv", seed=0))}},
        "models": {"main": {"name": str(shared_data("stories260k") / "hf")}},
        "stages": [{"name": "adapt", "steps": 3}],
        "techniques": [{"LoRA": {"rank": 2}}],
    }
    run = train_job(parse_recipe(json.dumps(recipe)), tmp_path / "run")
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert (manifest["model"]["type"], manifest["model"]["licence"]) == ("llama", None)
    assert json.loads((run.path / "metrics.json").read_text())["forgetting"]["drift"]["top"] > 0


@pytest.mark.inventory("backbone-gen", by="models.main.network: GenerativePair with technique GAN")
def test_a_small_generator_of_pictures_is_trained_saved_and_draws_new_ones(tmp_path):
    from regraft.models.save import load_model

    recipe = {
        "data": {"main": {"path": "digits", "limit": 200}},
        "models": {"main": {"network": {"GenerativePair": {"latent": 8, "width": 32}}, "image_size": 8}},
        "train": {"batch_size": 32, "optimizer": {"Adam": {"lr": 0.001, "betas": [0.5, 0.999]}}},
        "stages": [{"name": "play", "steps": 5}],
        "techniques": ["GAN"],
    }
    run = train_job(parse_recipe(json.dumps(recipe)), tmp_path / "run")
    model, _ = load_model(run.path / "model")
    with torch.no_grad():
        drawn = model.generator(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
    assert drawn.shape == (4, 3, 8, 8)
    assert bool(drawn.isfinite().all())
    assert not torch.equal(drawn[0], drawn[1])
