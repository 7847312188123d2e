"""`regraft train`: any of the eight shapes on real data, killed and resumed to the same bits, into a run directory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from regraft.config.recipe import RecipeSpec, recipe_from_tree
from regraft.data.read import load
from regraft.errors import ConfigError, RunError
from regraft.layers.byte_dropout import ByteDropout
from regraft.models.attention import NAME
from regraft.models.save import load_model
from regraft.phases import train
from regraft.phases.build import assemble
from regraft.phases.judges import judge_for
from regraft.phases.progress import Silent
from regraft.phases.train import is_training_run, resume_training, train_job

MLP = {"network": {"MLP": {"width": 16, "depth": 1, "dropout": 0.1}}}
DIGITS = MLP | {"image_size": 8}


def spec(*techniques, data=None, models=None, steps=12, **changes) -> RecipeSpec:
    tree = {
        "data": data or {"main": {"path": "wine"}},
        "models": models or {"main": MLP},
        "train": {"batch_size": 16, "optimizer": {"AdamW": {"lr": 3e-3}}},
        "stages": [{"name": "train", "steps": steps}],
        "techniques": list(techniques),
        "checkpoint": {"every_steps": 3},
        "validate": {"times": 2},
    }
    return recipe_from_tree(tree | changes)


TWO_STAGES = [{"name": "earlier", "steps": 6, "data": "earlier"}, {"name": "later", "steps": 6}]
SHAPES = {
    "supervised": lambda teacher: spec(),
    "distillation": lambda teacher: spec(
        {"Distillation": {"teacher": "teacher"}}, models={"main": MLP, "teacher": {"name": str(teacher)}}
    ),
    "sam": lambda teacher: spec({"SAM": {"rho": 0.1}}),
    "gan": lambda teacher: spec("GAN", models={"main": {"network": {"GenerativePair": {"latent": 4, "width": 16}}}}),
    "maml": lambda teacher: spec(
        {"MAML": {"ways": 3, "shots": 2, "queries": 2, "tasks": 2}},
        data={"main": {"path": "digits-0-4", "limit": 100}, "novel": {"path": "digits-5-9", "limit": 100}},
        models={"main": DIGITS},
    ),
    "grpo": lambda teacher: spec({"GRPO": {"group_size": 4, "epochs": 2, "kl_weight": 0.1}}),
    "dann": lambda teacher: spec(
        {"DANN": {"target": "field", "width": 8}},
        data={"main": {"path": "wine", "limit": 60}, "field": {"path": "wine"}},
    ),
    "ewc": lambda teacher: spec(
        {"EWC": {"weight": 100, "samples": 16}},
        data={"main": {"path": "digits-5-9", "limit": 100}, "earlier": {"path": "digits-0-4", "limit": 100}},
        models={"main": DIGITS},
        stages=TWO_STAGES,
    ),
    "two stages that patience ends": lambda teacher: spec(
        data={"main": {"path": "wine"}, "earlier": {"path": "wine"}},
        stages=[{"name": "earlier", "steps": 16, "data": "earlier"}, {"name": "later", "steps": 16}],
        train={"batch_size": 16, "optimizer": {"SGD": {"lr": 1e-9}}},
        validate={"times": 8, "patience": 2},
    ),
    "weight average and patience": lambda teacher: spec("WeightAverage", validate={"times": 4, "patience": 3}),
}


class Killed(Exception):
    """Stands for the end of the process."""


class KilledAt(Silent):
    """A reporter that ends the process at a step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def advance(self, done: int, note: str = "", /) -> None:
        self.left -= done
        if self.left <= 0:
            raise Killed


class Heard(Silent):
    def __init__(self) -> None:
        self.sentences: list[str] = []

    def say(self, sentence: str, /) -> None:
        self.sentences.append(sentence)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """The run directory of a trained network on wine."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    return train_job(spec(models={"main": {"network": {"MLP": {"width": 32, "depth": 1}}}}, steps=60), out).path


@pytest.fixture
def no_report(monkeypatch) -> None:
    """Leaves out the page, which has tests of its own and takes most of the time."""
    monkeypatch.setattr(train, "write_report", lambda run: run)


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_run_that_was_killed_ends_with_the_bits_of_one_that_was_not(shape, teacher, tmp_path):
    made = SHAPES[shape](teacher)
    whole = train_job(made, tmp_path / "whole").path
    with pytest.raises(Killed):
        train_job(made, tmp_path / "killed", reporter=KilledAt(11))
    assert not (tmp_path / "killed" / "model").exists()
    heard = Heard()
    killed = resume_training(tmp_path / "killed", reporter=heard).path
    assert any(sentence.startswith("continuing from step-") for sentence in heard.sentences)
    ours, theirs = (load_file(run / "phases" / "final.safetensors") for run in (killed, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (killed / "events.jsonl").read_text() == (whole / "events.jsonl").read_text()
    for phase in ("start", "train", "evaluate"):  # losses, validations and test scores
        notes = [json.loads((run / "phases" / f"{phase}.json").read_text()) for run in (killed, whole)]
        assert notes[0] == notes[1]
    if shape == "two stages that patience ends":
        assert json.loads((killed / "phases" / "train.json").read_text())["stopped"].keys() == {"earlier", "later"}
    assert (whole / "metrics.json").exists() == (shape not in ("gan", "maml"))


@pytest.mark.usefixtures("no_report")
def test_the_checkpoint_with_the_best_score_is_kept_beside_the_newest(tmp_path):
    made = spec(steps=12, stages=[{"name": "train", "steps": 12}], validate={"times": 12},
                train={"batch_size": 16, "optimizer": {"AdamW": {"lr": 0.05}}},
                checkpoint={"every_steps": 4, "keep_last": 1, "keep_best": 1})  # fmt: skip
    run = train_job(made, tmp_path / "run").path
    results = json.loads((run / "phases" / "train.json").read_text())["validations"]["train"][:-1]
    best = max(results, key=lambda result: (result["score"], -result["step"]))
    kept = {int(path.name[-8:]) for path in (run / "checkpoints").iterdir()}
    assert int(best["step"]) in kept
    assert len(kept) == 2
    state = load_file(run / "checkpoints" / f"step-{int(best['step']):08d}" / "state.safetensors")
    entry = assemble(made)
    entry.recipe.model.load_state_dict(
        {n.removeprefix("/model/"): t for n, t in state.items() if n.startswith("/model/")}
    )
    judge = judge_for(made.techniques, entry.main, "valid")
    assert judge is not None
    assert judge.measure(entry.recipe.model)["score"] == best["score"]


@pytest.mark.usefixtures("no_report")
def test_training_changes_the_weights_and_the_seed_decides_them(tmp_path):
    def final(name, seed):
        run = train_job(spec(seed=seed, steps=4), tmp_path / name)
        return load_file(run.path / "phases" / "final.safetensors")["stem.weight"]

    first = final("first", 0)
    assert torch.equal(first, final("again", 0))
    assert not torch.equal(first, final("other", 1))
    assert not torch.equal(first, assemble(spec(steps=4)).recipe.model.get_parameter("stem.weight"))


def test_a_run_directory_holds_what_was_done_and_a_model_that_answers_as_it_was_measured(teacher):
    assert is_training_run(teacher)
    for name in ("recipe.yaml", "manifest.json", "events.jsonl", "ledger.json", "metrics.json", "report.html"):
        assert (teacher / name).stat().st_size > 0, name
    metrics = json.loads((teacher / "metrics.json").read_text())
    accuracy = metrics["final"]["test"]["accuracy"]["value"]
    assert accuracy > 0.9
    assert metrics["probe"] == {}
    assert [line["phase"] for line in json.loads((teacher / "ledger.json").read_text())] == [
        "start",
        "train",
        "evaluate",
        "save",
        "report",
    ]
    model, info = load_model(teacher / "model")
    entry = assemble(spec()).main
    with torch.no_grad():
        logits = model(entry.encoded("test").collate(np.arange(len(entry.encoded("test"))))["x"])
    assert float((logits.argmax(1) == entry.targets("test")).float().mean()) == pytest.approx(accuracy)
    assert info["labels"] == list(load(spec().main_data()).schema.classes)


@pytest.mark.usefixtures("no_report")
def test_a_regression_model_is_saved_in_the_unit_of_the_target(tmp_path):
    made = spec(data={"main": {"path": "diabetes"}}, models={"main": {"network": "WideDeep"}}, probe={}, steps=6)
    run = train_job(made, tmp_path / "run")
    model, _ = load_model(run.path / "model")
    entry = assemble(made).main
    with torch.no_grad():
        said = model(entry.encoded("test").collate(np.arange(len(entry.encoded("test"))))["x"]).squeeze(1).numpy()
    wanted = entry.materials.raw_targets("test")
    r2 = 1 - ((said - wanted) ** 2).sum() / ((wanted - wanted.mean()) ** 2).sum()
    metrics = run.read_json("metrics.json")
    assert r2 == pytest.approx(metrics["final"]["test"]["r2"]["value"], abs=1e-4)
    assert metrics["probe"]["test"]["r2"]["value"] > 0.3  # the linear model that training starts from


def test_stages_with_different_classes_share_one_list_in_natural_order():
    made = assemble(SHAPES["ewc"](None))
    assert made.entries["main"].materials.dataset.schema.classes == tuple("0123456789")
    assert set(made.entries["main"].targets("train").tolist()) == {5, 6, 7, 8, 9}
    assert set(made.entries["earlier"].targets("train").tolist()) == {0, 1, 2, 3, 4}
    assert made.recipe.model(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


def test_an_entry_that_no_stage_trains_on_adds_no_classes_and_gives_no_labels():
    made = assemble(SHAPES["maml"](None))
    assert made.main.num_outputs == 5
    batch = next(made.recipe.sources["novel"].batches(made.recipe.model))
    assert "y" not in batch
    assert "x" in batch


def test_a_target_without_labels_is_read_with_the_schema_of_main(tmp_path):
    rows = load(spec().main_data()).splits["train"]
    inputs = [name for name in rows.column_names if name != "cultivar"]
    table = rows.select(inputs).to_pandas()
    table.to_csv(tmp_path / "field.csv", index=False)
    data = {"main": {"path": "wine"}, "field": {"path": str(tmp_path / "field.csv")}}
    made = assemble(spec({"DANN": {"target": "field"}}, data=data))
    assert len(made.entries["field"].encoded(made.entries["field"].drawn)) == len(table)
    assert "target_y" not in next(made.recipe.stages[0].source.batches(made.recipe.model))
    assert any("read without labels" in sentence for sentence in made.sentences)


def test_a_teacher_of_other_classes_is_refused(teacher):
    models = {"main": DIGITS, "teacher": {"name": str(teacher)}}
    made = spec({"Distillation": {"teacher": "teacher"}}, data={"main": {"path": "digits", "limit": 50}}, models=models)
    with pytest.raises(ConfigError, match=r"models.teacher: .* must know the 10 classes of data.main"):
        assemble(made)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: spec(stages=[]), "stages: a recipe to train needs at least one"),
        (lambda: spec(stages=[{"name": "a", "steps": 1, "data": "other"}]), "trains on the entry 'other'"),
        (lambda: spec(stages=[{"name": "a", "steps": 1}] * 2), "every stage needs a name of its own"),
        (lambda: spec(probe={}), "probe: a ResidualMLP with fresh weights has no features"),
        (lambda: spec({"DANN": {"target": "main"}}, models={"main": {}}), "models.main"),
        (
            lambda: spec(
                data={"main": {"path": "wine"}, "old": {"path": "diabetes"}},
                stages=[{"name": "a", "steps": 1, "data": "old"}],
            ),
            "data.old: must have the task of data.main",
        ),
    ],
)
def test_a_recipe_that_cannot_be_trained_is_refused_before_anything_is_written(made, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train_job(made(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_search_that_a_recipe_asks_for_is_not_left_out_silently(tmp_path):
    run = train_job(spec(search={"space": {"train.batch_size": {"choice": [8, 16]}}}), tmp_path / "run")
    said = run.done("start")["sentences"]
    assert any("search:" in each and "train.batch_size" in each and "`regraft search`" in each for each in said)


def test_only_a_training_run_is_taken_for_one(tmp_path):
    assert not is_training_run(tmp_path)
    (tmp_path / "recipe.yaml").write_text("seed: 0")
    (tmp_path / "manifest.json").write_text('{"format": "regraft.manifest/1"}')
    assert not is_training_run(tmp_path)
    with pytest.raises(RunError, match="is not a run directory"):
        resume_training(tmp_path / "nothing")


@pytest.mark.usefixtures("no_report")
def test_a_module_of_ones_own_is_trained(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(13, 16), nn.ReLU(), nn.Linear(16, 3))
    run = train_job(spec(models={"main": {}}, steps=80), tmp_path / "run", module=module)
    assert run.read_json("metrics.json")["final"]["test"]["accuracy"]["value"] > 0.8


@pytest.mark.parametrize("head", ["standard", "graft"])
def test_without_a_gpu_a_transformer_is_trained_with_attention_and_dropout_made_for_processors(
    head, minilm, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = {"name": "minilm"} | ({"head": "standard"} if head == "standard" else {})
    data = {"main": {"path": "stdlib-docstrings", "limit": 40}}
    made = assemble(spec(data=data, models={"main": model})).recipe.model
    network = made.whole if head == "standard" else made.backbone
    assert network.config._attn_implementation == NAME
    assert {type(layer) for layer in network.modules() if isinstance(layer, nn.Dropout)} == {ByteDropout}
