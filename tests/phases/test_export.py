"""Deltas give back every bit of the run, on the base they were made for and no other; many of them stand on one base."""

from __future__ import annotations

import json
import random
import shutil
import time

import pytest
import torch

from regraft import load_variants
from regraft.config.recipe import parse_recipe
from regraft.errors import ConfigError, ModelError, RunError
from regraft.models.delta import load_base
from regraft.models.save import load_model
from regraft.phases.export import export_delta, export_merged
from regraft.phases.predict import load
from regraft.phases.train import train_job

WORDS = ["good", "fine", "bad", "poor", "film", "play", "the", "a", "is", "was"]
TECHNIQUES = {
    "lora": [{"LoRA": {"rank": 2}}],
    "houlsby": [{"Adapter": {"kind": "houlsby", "width": 4}}],
    "pfeiffer": [{"Adapter": {"kind": "pfeiffer", "width": 4}}],
    "prefix": [{"PrefixTuning": {"tokens": 3}}],
    "prompt": [{"PromptTuning": {"tokens": 3}}],
    "p-tuning": [{"PTuning": {"tokens": 3, "hidden": 4}}],
    "qlora": [{"QLoRA": {"rank": 2, "bits": 4}}],
    "qlora-8": [{"QLoRA": {"rank": 2, "bits": 8}}],
    "last": [{"LastK": {"blocks": 1}}],
    "norm": [{"NormOnly": {}}],
    "full": [],
}


ALSO = ("pfeiffer", "p-tuning", "qlora-8", "norm")  # like others in what they leave in a folder
SLOW = {True: (pytest.mark.slow,), False: ()}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny BERT of random weights with a tokenizer of words, as save_pretrained leaves them."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("models") / "tiny"
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        folder
    )
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)
    return folder


def table(file, words=("good", "bad")):
    draw = random.Random(0)
    lines = [f"{' '.join(draw.choices(WORDS[4:], k=6))} {words[i % 2]},{words[i % 2]}" for i in range(60)]
    file.write_text("\n".join(["text,label", *lines]) + "\n")
    return file


TEXTS = ["the film was good", "a play is bad", "the the the", "good bad fine poor film play"]


def trained(folder, name, model, *, head="depths", words=("good", "bad"), steps=6, depths=None):
    recipe = {
        "data": {"main": {"path": str(table(folder / f"{name}.csv", words)), "modality": "text"}},
        "models": {"main": {"name": str(model), "head": head} | ({"depths": depths} if depths else {})},
        "train": {"batch_size": 8, "optimizer": {"AdamW": {"lr": 0.02}}},
        "techniques": TECHNIQUES[name.partition(" ")[0]],
        "stages": [{"name": "adapt", "steps": steps}],
    }
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(recipe))
    return train_job(parse_recipe(file.read_text()), folder / f"run {name}").path


@pytest.fixture(scope="module")
def runs(tmp_path_factory, base):
    """A run of each technique, made when it is asked for."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def run(name: str):
        if name not in made:
            made[name] = trained(folder, name, base)
        return made[name]

    return run


def scores(predictor) -> list:
    return [one.to_json() for one in predictor.predict(TEXTS)]


@pytest.mark.inventory("adapter-generic", "delta-only", by="regraft export RUN --delta OUT")
@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW[name in ALSO]) for name in TECHNIQUES])
def test_a_delta_on_its_base_is_the_run_bit_for_bit(runs, base, tmp_path, name):
    run = runs(name)
    made = export_delta(run, tmp_path / "delta")
    model, again = (load_model(folder)[0] for folder in (run / "model", tmp_path / "delta"))
    theirs = again.state_dict()
    assert model.state_dict().keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in model.state_dict().items())
    assert scores(load(tmp_path / "delta")) == scores(load(run)), "other predictions"
    assert not list((tmp_path / "delta").glob("model.safetensors"))
    assert not list((tmp_path / "delta").glob("*token*")), "the tokenizer is the base's"
    if name != "full":
        assert (tmp_path / "delta" / "changed.safetensors").stat().st_size < made.base_bytes / 2
    assert made.base_bytes == 4 * sum(
        value.numel() for value in load_base(str(base), modality="text").module.parameters()
    )
    plain = "```python" in (run / "model" / "README.md").read_text()
    assert plain == (name in ("lora", "last", "norm", "full")), (
        "code in the README that would leave out what was put in"
    )


@pytest.mark.inventory("delta-only", by="regraft export RUN --delta OUT; regraft predict OUT FILE")
def test_the_commands_write_a_delta_with_its_megabytes_and_predict_from_it(runs, tmp_path):
    from typer.testing import CliRunner

    from regraft.cli.app import app

    out = tmp_path / "delta"
    said = CliRunner().invoke(app, ["export", str(runs("lora")), "--delta", str(out)])
    assert said.exit_code == 0, said.stderr
    size = sum(file.stat().st_size for file in out.iterdir())
    assert f"{size / 1e6:,.2f} MB" in said.stdout
    assert "its base" in said.stdout
    file = tmp_path / "new.txt"
    file.write_text("\n".join(TEXTS) + "\n")
    answers = [CliRunner().invoke(app, ["predict", str(folder), str(file)]) for folder in (out, runs("lora"))]
    assert answers[0].exit_code == 0, answers[0].stderr
    assert answers[0].stdout == answers[1].stdout
    assert len(answers[0].stdout.splitlines()) == 1 + len(TEXTS)


def test_only_what_changed_is_in_it(runs, tmp_path):
    from safetensors.torch import load_file

    export_delta(runs("last"), tmp_path / "last")
    names = set(load_file(tmp_path / "last" / "changed.safetensors"))
    assert names
    assert all(name.startswith("encoder.layer.2.") for name in names)
    export_delta(runs("lora"), tmp_path / "lora")
    assert all(".lora_" in name for name in load_file(tmp_path / "lora" / "changed.safetensors"))


def test_a_model_that_was_cut_and_one_with_transformers_own_head_have_deltas_too(base, tmp_path):
    for name, options in (
        ("lora cut", {"depths": [1]}),
        ("lora own", {"head": "standard"}),
        ("last own", {"head": "standard"}),
    ):
        run = trained(tmp_path, name, base, **options)
        export_delta(run, tmp_path / f"delta {name}")
        assert scores(load(tmp_path / f"delta {name}")) == scores(load(run)), name


@pytest.mark.inventory("delta-only", by="regraft export RUN --delta OUT")
def test_other_weights_under_the_name_of_the_base_are_refused(runs, base, tmp_path):
    export_delta(runs("lora"), tmp_path / "delta")
    other = shutil.copytree(base, tmp_path / "other")
    from safetensors.torch import load_file, save_file

    tensors = load_file(other / "model.safetensors")
    tensors["encoder.layer.0.output.dense.bias"][3] += 1e-6
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"was made for weights of .*tiny whose sha256 starts with [0-9a-f]{12}, but those of"
    ):
        load(tmp_path / "delta", base=str(other))
    moved = shutil.copytree(base, tmp_path / "moved")
    assert scores(load(tmp_path / "delta", base=str(moved))) == scores(load(runs("lora")))


def test_what_has_no_delta_is_refused_in_a_sentence(runs, base, tmp_path):
    export_delta(runs("lora"), tmp_path / "delta")
    with pytest.raises(ModelError, match="is a delta already, so there is no base to leave out"):
        export_delta(tmp_path / "delta", tmp_path / "again")
    with pytest.raises(RunError, match="delta exists; give a new folder"):
        export_delta(runs("lora"), tmp_path / "delta")
    with pytest.raises(ModelError, match="only LoRA can be added to the weights, and the model holds prefix"):
        export_merged(runs("prefix"), tmp_path / "merged")
    with pytest.raises(ModelError, match=r"variant 'a': .* is a whole model; write its delta with `regraft export"):
        load_variants(str(base), {"a": runs("lora")})
    with pytest.raises(ConfigError, match="give at least one folder"):
        load_variants(str(base), {})
    assert not [file for file in tmp_path.iterdir() if "making" in file.name]


@pytest.mark.inventory("lora", "many-variants", by="regraft export RUN --merged OUT")
def test_a_merged_model_is_a_plain_one_with_the_same_numbers(runs, tmp_path):
    from transformers import AutoModel

    export_merged(runs("lora"), tmp_path / "merged")
    ours, merged = (load(folder) for folder in (runs("lora"), tmp_path / "merged"))
    for one, other in zip(scores(ours), scores(merged), strict=True):
        assert one["label"] == other["label"]
        for label, probability in one["probabilities"].items():
            assert other["probabilities"][label] == pytest.approx(probability, abs=1e-5)
    assert not any("lora" in name for name in merged.model.state_dict())
    AutoModel.from_pretrained(tmp_path / "merged", add_pooling_layer=False)


NAMES = ("lora", "houlsby", "prefix", "prompt", "last")


@pytest.mark.inventory("many-variants", by="rg.load_variants(base, {name: folder})")
def test_many_variants_on_one_base_each_equal_their_own_run(runs, base, tmp_path):
    folders = {}
    for name in NAMES:
        folders[name] = tmp_path / name
        export_delta(runs(name), folders[name])
    loaded = load_base(str(base), modality="text")
    variants = load_variants(loaded, folders)
    assert variants.names == list(NAMES)
    alone = {name: scores(load(runs(name))) for name in NAMES}
    for _ in range(2):  # in any order, again and again
        for name in NAMES:
            assert [one.to_json() for one in variants.predict(name, TEXTS)] == alone[name], name
    sizes = variants.num_bytes
    assert sizes["base"] == loaded.num_bytes
    assert all(0 < sizes[name] < sizes["base"] / 2 for name in NAMES), sizes
    assert (
        sizes["lora"]
        == sum(p.numel() * 4 for n, p in variants["lora"].model.named_parameters() if "lora_" in n) + 4 * 34
    )
    began = time.perf_counter()
    for _ in range(100):
        for name in NAMES:
            variants[name]
    assert (time.perf_counter() - began) / 500 < 1e-3, "a switch takes a millisecond or more"
    with pytest.raises(ConfigError, match=r"no variant is called 'lroa'; did you mean 'lora'\?"):
        variants["lroa"]


@pytest.mark.inventory("delta-only", "many-variants", by="regraft export RUN --delta OUT; rg.load_variants")
def test_a_delta_of_minilm_is_a_fiftieth_of_it_and_several_share_its_memory(minilm, tmp_path):
    run = trained(tmp_path, "lora", minilm, steps=2)
    made = export_delta(run, tmp_path / "delta")
    assert made.base_bytes > 80e6
    assert made.num_bytes < made.base_bytes / 50, made.sentence()
    assert f"{made.num_bytes / 1e6:,.2f} MB" in made.sentence()
    assert f"{made.base_bytes / 1e6:,.2f} MB" in made.sentence()
    variants = load_variants(str(minilm), {"one": tmp_path / "delta", "two": tmp_path / "delta"})
    assert scores(variants["one"]) == scores(variants["two"]) == scores(load(run))
    assert variants.num_bytes["one"] + variants.num_bytes["two"] < variants.num_bytes["base"] / 25
    state = variants["two"].model.backbone.state_dict()
    shared = {value.data_ptr() for value in variants["one"].model.backbone.state_dict().values()}
    held = sum(value.numel() * 4 for value in state.values() if value.data_ptr() not in shared)
    assert held < variants.num_bytes["base"] / 50, "the second one holds more than its delta"
