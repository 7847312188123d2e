"""A decoder trained on plain text by `regraft train`: bits per token fall, are the model's own, and the folder loads plainly."""

from __future__ import annotations

import json
import math

import pytest
import torch

from regraft.config.recipe import recipe_from_tree
from regraft.data.read import load as load_data
from regraft.errors import ConfigError, DataError, ModelError, RunError
from regraft.phases.opening import open_data
from regraft.phases.predict import load
from regraft.phases.progress import Silent
from regraft.phases.train import resume_training, train_job


@pytest.fixture(scope="module")
def play(shared_data, tmp_path_factory):
    """The first 60,000 characters of the plays, about 400 speeches."""
    file = tmp_path_factory.mktemp("play") / "play.txt"
    file.write_text((shared_data("tinyshakespeare") / "input.txt").read_text()[:60_000])
    return file


@pytest.fixture(scope="module")
def stories(shared_data):
    return shared_data("stories260k") / "hf"


def spec(path, model, *techniques, steps=40, **changes):
    tree = {
        "data": {"main": {"path": str(path), "task": "language-model"}},
        "models": {"main": {"name": str(model), "max_length": 64}},
        "train": {"batch_size": 16, "optimizer": {"AdamW": {"lr": 2e-3}}},
        "stages": [{"name": "train", "steps": steps}],
        "techniques": list(techniques),
        "validate": {"times": 2},
        "checkpoint": {"every_steps": 4},
    }
    return recipe_from_tree(tree | changes)


@pytest.fixture(scope="module")
def run(play, stories, tmp_path_factory):
    return train_job(spec(play, stories), tmp_path_factory.mktemp("language") / "run")


@pytest.mark.inventory("nll-generative", by="data.main.task: language-model, regraft train")
def test_bits_per_token_fall_in_training_and_on_texts_held_back(run):
    lines = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    bits = [line["bits_per_token"] for line in lines if "bits_per_token" in line]
    assert sum(bits[-10:]) < sum(bits[:10]) - 5  # half a bit a token
    for line in lines:
        if "bits_per_token" in line:
            assert line["bits_per_token"] == pytest.approx(line["loss"] / math.log(2), rel=1e-5)
    start = run.done("start")["test"]["main"]
    final = run.read_json("metrics.json")["final"]["test"]
    assert final["bits_per_token"]["value"] < -start["score"] - 0.5
    assert final["perplexity"]["value"] == pytest.approx(2 ** final["bits_per_token"]["value"], rel=1e-9)
    assert final["bits_per_token"]["low"] < final["bits_per_token"]["value"] < final["bits_per_token"]["high"]


@pytest.mark.inventory("nll-generative", by="data.main.task: language-model, regraft train")
def test_the_metric_is_what_plain_transformers_says_of_the_saved_folder(run, play, stories):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(run.path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(stories)
    data = load_data(spec(play, stories).main_data())
    texts = data.splits["test"].column("text").to_pylist()
    total, tokens = 0.0, 0
    with torch.no_grad():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=64)["input_ids"]
            if ids.shape[1] > 1:
                total += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
                tokens += ids.shape[1] - 1
    test = run.read_json("metrics.json")["final"]["test"]
    assert test["tokens"]["value"] == tokens
    assert test["n"]["value"] == len(texts)
    assert test["bits_per_token"]["value"] == pytest.approx(total / tokens / math.log(2), rel=1e-5)


def test_it_has_a_report_and_is_no_model_that_labels(run):
    page = (run.path / "report.html").read_text()
    assert "bits" in page
    with pytest.raises(RunError, match=r"holds a language model, which has no label to predict"):
        load(run.path)


def test_a_text_file_is_read_by_paragraphs_and_cut_into_splits(play, stories):
    data = load_data(spec(play, stories).main_data())
    assert data.schema.task == "language-model"
    assert (data.schema.inputs, data.schema.label, data.schema.classes) == (("text",), (), ())
    assert list(data.splits) == ["train", "valid", "test"]
    first = data.splits["train"].table.column("text")[0].as_py()
    assert first == "First Citizen:\nBefore we proceed any further, hear me speak."
    assert any("paragraphs of play.txt, between blank lines" in reason for reason in data.schema.reasons)


def test_a_column_of_a_table_will_do(stories, tmp_path):
    rows = [
        {"story": f"Once there was a cat number {i} who liked to run and play in the {i % 7} parks.", "id": i}
        for i in range(80)
    ]
    file = tmp_path / "stories.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    tree = {"main": {"path": str(file), "task": "language-model", "text": "story"}}
    run = train_job(spec(file, stories, data=tree, steps=2), tmp_path / "run")
    assert run.read_json("metrics.json")["task"] == "language-model"


def test_killed_and_resumed_it_ends_with_the_same_bits(play, stories, tmp_path):
    class Killed(Exception):
        pass

    class KilledAt(Silent):
        def __init__(self):
            self.left = 6

        def advance(self, count, note=""):
            self.left -= count
            if self.left <= 0:
                raise Killed

    small = spec(play, stories, steps=10, train={"batch_size": 4, "micro": 2})
    whole = train_job(small, tmp_path / "whole")
    with pytest.raises(Killed):
        train_job(small, tmp_path / "killed", reporter=KilledAt())
    again = resume_training(tmp_path / "killed")
    assert again.read_json("metrics.json")["final"] == whole.read_json("metrics.json")["final"]


@pytest.mark.parametrize("technique", ["LoRA", "L2Penalty"])
def test_techniques_of_classifiers_serve_it_too(technique, play, stories, tmp_path):
    run = train_job(spec(play, stories, technique, steps=3, train={"batch_size": 4}), tmp_path / "run")
    assert run.read_json("metrics.json")["final"]["test"]["bits_per_token"]["value"] < 12


def test_what_cannot_be_is_refused_in_a_sentence(play, stories, minilm, tmp_path):
    with pytest.raises(ModelError, match="is a bert model, which sees tokens before and behind; give a decoder"):
        train_job(spec(play, minilm), tmp_path / "encoder")
    with pytest.raises(ConfigError, match="MSE is for regression, but the task is language-model; take NextToken"):
        train_job(spec(play, stories, train={"loss": "MSE"}), tmp_path / "loss")
    with pytest.raises(ConfigError, match="probe: a language-model has no head"):
        train_job(spec(play, stories, probe={"folds": 2}), tmp_path / "probe")
    with pytest.raises(ConfigError, match="the main job puts labels on texts"):
        open_data(spec(play, stories), Silent())
    table = {"main": {"path": "wine", "task": "language-model"}}
    with pytest.raises(DataError, match="language-model learns from text, but the data is of modality table"):
        train_job(spec(play, stories, data=table), tmp_path / "table")
    labelled = {"main": {"path": str(play), "task": "language-model", "label": "text"}}
    with pytest.raises(DataError, match="a text is its own target, so leave the label 'text' out"):
        train_job(spec(play, stories, data=labelled), tmp_path / "labelled")
