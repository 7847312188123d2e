"""A regression of several numbers, from the columns that name them to metrics and predictions of each, by `regraft train`."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, r2_score

from regraft.config.recipe import recipe_from_tree
from regraft.data.read import load as load_data
from regraft.errors import ConfigError, Conflict, DataError
from regraft.phases.choose.fit import Problem, fit_head, standardised
from regraft.phases.opening import open_data
from regraft.phases.predict import load
from regraft.phases.progress import Silent
from regraft.phases.scoring import score_data
from regraft.phases.train import resume_training, train_job

TARGETS = ("alcohol", "density", "quality")


@pytest.fixture(scope="module")
def wine(shared_data):
    return shared_data("wine_quality_red")


def spec(path, *techniques, label=TARGETS, **changes):
    tree = {
        "data": {"main": {"path": str(path), "label": list(label)}},
        "models": {"main": {"network": {"MLP": {"width": 32, "depth": 1}}}},
        "train": {"batch_size": 64, "optimizer": {"AdamW": {"lr": 3e-3}}},
        "stages": [{"name": "train", "steps": 120}],
        "techniques": list(techniques),
        "checkpoint": {"every_steps": 50},
    }
    return recipe_from_tree(tree | changes)


@pytest.fixture(scope="module")
def run(wine, tmp_path_factory):
    return train_job(spec(wine, "PCGrad", "UncertaintyWeighting"), tmp_path_factory.mktemp("several") / "run")


@pytest.mark.inventory("uncertainty-weighting", "gradient-surgery", by="data.main.label: [a, b], regraft train")
def test_metrics_name_each_target_and_are_those_of_scikit_learn_in_its_own_unit(run, wine):
    metrics = run.read_json("metrics.json")
    assert metrics["task"] == "regression"
    assert list(metrics["per_target"]) == list(TARGETS)
    data = load_data(spec(wine).main_data())
    predictor = load(run.path)
    rows = np.arange(len(data.splits["test"]))
    said = predictor.scores(data.raw("test", rows))
    true = data.targets("test")
    assert said.shape == true.shape == (len(rows), 3)
    for at, name in enumerate(TARGETS):
        each = metrics["per_target"][name]
        assert each["r2"]["value"] == pytest.approx(r2_score(true[:, at], said[:, at]), abs=1e-3)
        assert each["mae"]["value"] == pytest.approx(mean_absolute_error(true[:, at], said[:, at]), rel=1e-3)
        assert each["r2"]["low"] <= each["r2"]["value"] <= each["r2"]["high"]
    mean = np.mean([metrics["per_target"][name]["r2"]["value"] for name in TARGETS])
    assert metrics["final"]["test"]["r2"]["value"] == pytest.approx(mean, rel=1e-9)
    assert metrics["per_target"]["density"]["r2"]["value"] > 0.5


def test_the_log_says_what_tasks_weigh_and_how_often_they_conflict(run):
    lines = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    last = [line for line in lines if "loss" in line][-1]
    assert {f"log_variance/{name}" for name in TARGETS} <= last.keys()
    assert 0 <= last["conflicts"] <= 1
    assert any("the least noisy first: density" in line.get("note", "") for line in lines)


def test_predictions_are_numbers_by_name_also_in_a_file(run, wine, tmp_path):
    from typer.testing import CliRunner

    from regraft.cli.app import app

    source = next(wine.glob("*.csv"))
    few = tmp_path / "few.csv"
    few.write_text("\n".join(source.read_text().splitlines()[:4]) + "\n")
    (one, *_) = load(run.path).predict(few)
    assert list(one.to_json()["values"]) == list(TARGETS)
    out = tmp_path / "said.csv"
    result = CliRunner().invoke(app, ["predict", str(run.path), str(few), "--out", str(out)])
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert list(rows[0]) == list(TARGETS)
    assert float(rows[0]["density"]) == pytest.approx(one.values["density"], rel=1e-4)


def test_an_evaluation_on_new_data_names_each_target(run, wine):
    scored = score_data(load(run.path), str(next(wine.glob("*.csv"))), reporter=Silent())
    assert list(scored["per_target"]) == list(TARGETS)


def test_a_run_that_was_killed_ends_with_the_same_numbers(wine, tmp_path):
    class Killed(Exception):
        pass

    class KilledAt(Silent):
        def advance(self, count, note=""):
            raise Killed

    short = spec(
        wine, "PCGrad", "UncertaintyWeighting", stages=[{"name": "train", "steps": 8}], checkpoint={"every_steps": 3}
    )
    whole = train_job(short, tmp_path / "whole")
    with pytest.raises(Killed):
        train_job(short, tmp_path / "killed", reporter=KilledAt())
    again = resume_training(tmp_path / "killed")
    assert again.read_json("metrics.json")["final"] == whole.read_json("metrics.json")["final"]


def test_a_row_that_lacks_one_of_the_numbers_is_a_bad_row(wine, tmp_path):
    rows = next(wine.glob("*.csv")).read_text().splitlines()
    head, body = rows[0], [row.split(",") for row in rows[1:400]]
    for row in body[:5]:
        row[head.split(",").index("density")] = ""
    file = tmp_path / "gaps.csv"
    file.write_text("\n".join([head, *(",".join(row) for row in body)]) + "\n")
    with pytest.raises(
        DataError, match=r"row 0 of gaps.csv \(line 2\) has no label in the column 'density' \(and 4 more"
    ):
        load_data(spec(file).main_data())
    data = load_data(spec(file).main_data().replaced(on_bad_sample="skip"))
    assert data.skipped.rows["train"]["missing-label"].tolist() == [0, 1, 2, 3, 4]
    assert not any(np.isnan(data.targets(name)).any() for name in data.splits)


def test_the_main_job_refuses_several_numbers_and_one_number_is_no_several_tasks(wine, tmp_path):
    with pytest.raises(
        ConfigError, match=r"the main job predicts one number, got alcohol, density, quality; .*regraft train"
    ):
        open_data(spec(wine), Silent())
    with pytest.raises(Conflict, match="PCGrad weighs several tasks against each other, but stage 'train' has one"):
        train_job(spec(wine, "PCGrad", label=["alcohol"]), tmp_path / "run")
    with pytest.raises(ConfigError, match="ListwiseRank orders examples by one number"):
        train_job(spec(wine, train={"loss": "ListwiseRank"}), tmp_path / "other")


def test_a_probe_fits_each_number_as_if_it_were_alone(wine, tmp_path):
    """The head it starts from is ridge regression, and the finished model is compared with it."""
    from sklearn.linear_model import Ridge

    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 6, generator=draw), torch.randn(50, 3, generator=draw)
    features = standardised([x])
    head = fit_head(features, y, Problem(task="regression", num_outputs=3), l2=0.1)
    theirs = Ridge(alpha=0.1 * 50).fit(features.x.double().numpy(), y.double().numpy())
    np.testing.assert_allclose(head.weight.numpy(), theirs.coef_, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(head.bias.numpy(), theirs.intercept_, rtol=1e-4, atol=1e-6)
    wide = {"main": {"network": {"WideDeep": {"width": 8, "depth": 1}}}}
    run = train_job(
        spec(wine, models=wide, probe={"folds": 2}, stages=[{"name": "train", "steps": 5}]), tmp_path / "run"
    )
    assert run.read_json("metrics.json")["versus_probe"]["metric"] == "r2"
