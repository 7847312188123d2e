"""Control of training: the curve and its alarm, what may choose and what may not, the best epoch, and memory known beforehand."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from toy import mlp, recipe, stage
from typer.testing import CliRunner

from regraft.cli.app import app
from regraft.config.recipe import parse_recipe
from regraft.core import compile
from regraft.core.train import advance, start
from regraft.errors import ConfigError
from regraft.optim.optimizers import AdamW
from regraft.phases.build import assemble
from regraft.phases.judges import Watch, judge_for
from regraft.phases.loss_curve import flat_loss
from regraft.phases.optimizer_state import CHOICES, state_sentences, trained
from regraft.phases.train import train_job
from regraft.phases.training import Valid, Validate

RECIPE = """
data: {main: {path: PATH}}
models: {main: {network: {MLP: {width: 16}}}}
train: {batch_size: 16, optimizer: {Adam: {lr: 0.01}}}
stages: [{name: fit, steps: 120}]
validate: {times: 6}
"""


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train_job(parse_recipe(RECIPE.replace("PATH", "wine")), tmp_path_factory.mktemp("run") / "wine").path


def notes_of(run):
    return json.loads((run / "phases" / "train.json").read_text())["notes"]


# ---- the curve


@pytest.mark.inventory("loss-curve", by="regraft train recipe.yaml")
def test_the_report_has_the_curve_of_the_loss_and_a_falling_one_gives_no_alarm(finished):
    page = (finished / "report.html").read_text()
    assert 'aria-label="Training loss over 1 stages' in page
    losses = [json.loads(line) for line in (finished / "events.jsonl").read_text().splitlines()]
    assert sum("weight" in record for record in losses) == 120
    assert not any("did not fall" in note for note in notes_of(finished))
    assert "did not fall" not in page


@pytest.mark.inventory("loss-curve", by="regraft train recipe.yaml")
def test_a_loss_that_does_not_fall_is_an_alarm_in_the_run_and_in_its_report(tmp_path):
    spec = parse_recipe(RECIPE.replace("PATH", "wine"), overrides=["train.optimizer.Adam.lr=0", "stages.0.steps=60"])
    run = train_job(spec, tmp_path / "flat").path
    (note,) = [note for note in notes_of(run) if "did not fall" in note]
    assert note.startswith("warning: the training loss of stage 'fit' did not fall: ")
    assert "regraft lr" in note
    assert "did not fall" in (run / "report.html").read_text()


def lines(losses, stage="fit"):
    return [json.dumps({"stage": stage, "step": k, "loss": loss, "weight": 8}) for k, loss in enumerate(losses, 1)]


def test_the_alarm_knows_noise_from_a_fall():
    draw = np.random.default_rng(0)
    level = 1 + 0.3 * draw.normal(size=100)
    assert len(flat_loss(lines(level))) == 1
    assert flat_loss(lines(level - np.linspace(0, 0.6, 100))) == []
    assert len(flat_loss(lines(np.linspace(1, 2, 50)))) == 1  # it rises
    assert flat_loss(lines([1.0] * 10)) == []  # too few to say anything
    both = flat_loss([*lines(level, "one"), *lines(np.linspace(2, 1, 50), "two")])
    assert len(both) == 1
    assert "'one'" in both[0]


# ---- what chooses


@pytest.mark.inventory("val-not-test", by="validate: of a recipe")
def test_nothing_that_chooses_takes_a_judge_on_the_test_split():
    spec = parse_recipe(RECIPE.replace("PATH", "wine"))
    main = assemble(spec).main
    judge = judge_for((), main, "test")
    assert judge is not None
    with pytest.raises(ConfigError, match="must be chosen on validation rows, got a judge on the test split"):
        Watch(judge, spec.validate_)
    assert isinstance(judge, Valid)
    with pytest.raises(ConfigError, match="score the test rows once at the end"):
        Validate(judge, at=[1])
    valid = judge_for((), main, "valid")
    assert valid is not None
    Watch(valid, spec.validate_)


@pytest.mark.inventory("val-not-test", by="validate: of a recipe")
def test_a_recipe_cannot_name_the_test_split_for_its_choices():
    with pytest.raises(ConfigError, match="split"):
        parse_recipe(RECIPE.replace("{times: 6}", "{times: 6, split: test}"))
    refused = CliRunner().invoke(app, ["landscape", "recipe.yaml", "--split", "test"])
    assert refused.exit_code == 2


def split_data(folder, *, flipped):
    """Train, valid and test files of points; in the test file all labels are turned round if asked for."""
    draw = np.random.default_rng(0)
    folder.mkdir()
    for name, count in (("train", 120), ("valid", 60), ("test", 60)):
        points = draw.normal(size=(count, 2))
        sides = (points.sum(1) > 0) ^ (flipped and name == "test")
        rows = [f"{a:.3f},{b:.3f},{'up' if up else 'down'}" for (a, b), up in zip(points, sides, strict=True)]
        (folder / f"{name}.csv").write_text("\n".join(["a,b,label", *rows]))
    return folder


@pytest.mark.inventory("final-test", by="regraft train recipe.yaml")
def test_test_labels_change_the_final_score_and_nothing_else_and_their_use_is_counted(tmp_path):
    runs = []
    for flipped in (False, True):
        data = split_data(tmp_path / f"data{flipped}", flipped=flipped)
        text = RECIPE.replace("PATH", str(data)) + "checkpoint: {keep_best: 1}\n"
        text = text.replace("{times: 6}", "{times: 6, patience: 2}")
        runs.append(train_job(parse_recipe(text), tmp_path / f"run{flipped}").path)
    one, other = (json.loads((run / "metrics.json").read_text()) for run in runs)
    weights = [(run / "phases" / "final.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
    assert one["final"]["valid"] == other["final"]["valid"]
    accuracy = [m["final"]["test"]["accuracy"]["value"] for m in (one, other)]
    assert accuracy[0] == pytest.approx(1 - accuracy[1])
    assert accuracy[0] > 0.8
    assert one["test_uses"] == 1
    assert "used once" in (runs[0] / "report.html").read_text()


# ---- how long


@pytest.mark.inventory("epochs-hyper", by="regraft train recipe.yaml")
def test_the_report_says_at_which_epoch_validation_was_best(finished):
    records = [json.loads(line) for line in (finished / "events.jsonl").read_text().splitlines()]
    seen = [(r["valid/score"], -r["valid/loss"], r["step"]) for r in records if "valid/score" in r]
    best = max(seen)[2]
    rows = json.loads((finished / "metrics.json").read_text())["data"]["used"]["train"]
    said = re.search(
        r"Validation was best at step (\d+) of 120, epoch ([\d.]+)\.", (finished / "report.html").read_text()
    )
    assert said is not None
    assert int(said[1]) == best
    assert float(said[2]) == pytest.approx(best / -(-rows // 16), abs=0.05)


# ---- memory


@pytest.mark.inventory("opt-state-memory", by="regraft explain recipe.yaml")
def test_the_state_of_each_choice_is_said_before_the_run_and_is_what_a_step_makes(tmp_path, finished):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("PATH", "wine"))
    shown = CliRunner().invoke(app, ["explain", str(path)]).stdout
    assert "Adam keeps" in shown
    assert "of state beside them and their gradients (SGD " in shown
    said = json.loads((finished / "phases" / "start.json").read_text())["sentences"]
    assert any("Adam keeps" in sentence for sentence in said)

    for name, optimizer in CHOICES.items():
        spec = parse_recipe(RECIPE.replace("PATH", "wine"))
        spec = spec.replaced(train=spec.train.replaced(optimizer=optimizer))
        made = assemble(spec).recipe
        expected = optimizer.state_bytes(trained(made.stages[0]))
        run = start(made)
        advance(run, 1)
        (update,) = run.step.updates.values()
        tensors = [
            t for state in update.optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)
        ]
        assert sum(t.numel() * t.element_size() for t in tensors if t.ndim) == expected, name
    sizes = {name: optimizer.state_bytes(trained(made.stages[0])) for name, optimizer in CHOICES.items()}
    assert sizes["SGD"] == 0
    assert sizes["SGD"] < sizes["Adafactor"] < sizes["Lion"] < sizes["AdamW"] == 2 * sizes["SGD with momentum"]


def test_only_what_trains_counts():
    """Frozen weights have no state, and two stages that train the same are one sentence."""
    model = torch.nn.Sequential(mlp(), torch.nn.LayerNorm(4))
    model[0].requires_grad_(False)
    both = compile(recipe(stage(model, name="one"), stage(model, name="two")), [])
    (sentence,) = state_sentences(both, AdamW())
    assert "trains 32 B of weights: AdamW keeps 64 B" in sentence
