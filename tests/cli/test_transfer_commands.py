"""regraft layers: what it prints of recipes and of runs."""

from __future__ import annotations

import json

import pytest
import yaml

RECIPE = """
data: {main: {path: PATH}}
models: {main: {network: {MLP: {width: 8, depth: 3}}}}
stages: [{name: fit, steps: 20}]
train: {optimizer: {AdamW: {lr: 0.01}}}
techniques: [{LastK: {blocks: 1}}]
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE.replace("PATH", str(table)))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, recipe, regraft):
    out = tmp_path_factory.mktemp("trained") / "run"
    result = regraft("train", recipe, "--out", out, "--quiet")
    assert result.exit_code == 0, result.stderr
    return out


def shown(result):
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.inventory("layer-selection-metric", by="regraft layers")
@pytest.mark.parametrize("metric", ["fisher", "gradient"])
def test_every_layer_has_a_score_the_choice_is_the_same_each_time_and_is_a_technique(regraft, recipe, metric):
    found, again = (shown(regraft("layers", recipe, "--metric", metric, "--top", 2, "--json")) for _ in range(2))
    assert found == again
    scores = {row["layer"]: row["score"] for row in found["layers"]}
    assert all(score > 0 for score in scores.values())
    depths = [row["depth"] for row in found["layers"]]
    assert depths == sorted(depths)
    body = {name: score for name, score in scores.items() if name != found["layers"][-1]["layer"]}
    assert found["chosen"] == sorted(body, key=body.get, reverse=True)[:2]
    override = f"techniques={yaml.safe_dump([found['technique']], default_flow_style=True)}"
    assert shown(regraft("explain", recipe, "--set", override, "--json"))["compiled"]


@pytest.mark.inventory("layer-selection-metric", by="regraft layers --metric angle")
def test_the_angles_of_a_run_show_what_it_trained(regraft, trained):
    found = shown(regraft("layers", trained, "--metric", "angle", "--json"))
    angles = [row["score"] for row in found["layers"]]
    assert angles[0] == 0.0, "LastK freezes the lowest layer"
    assert angles[-1] > 0
    assert "degrees" in regraft("layers", trained, "--metric", "angle").stdout


def test_the_angles_of_a_run_with_lora_are_those_of_the_weights_it_was_added_to(regraft, recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.read_text().replace("LastK: {blocks: 1}", "LoRA: {rank: 2}"))
    assert regraft("train", path, "--out", tmp_path / "run", "--quiet").exit_code == 0
    found = shown(regraft("layers", tmp_path / "run", "--metric", "angle", "--by", "module", "--json"))
    angles = {row["layer"]: row["score"] for row in found["layers"]}
    assert not any("lora" in name or "base_layer" in name for name in angles)
    assert angles["stem"] == 0.0
    assert angles["blocks.0.up"] > 0
    assert all("lora" not in pattern for pattern in found["technique"]["TrainOnly"]["parameters"])


def test_the_angles_of_a_run_of_the_whole_path_can_be_read(regraft, finished):
    assert shown(regraft("layers", finished, "--metric", "angle", "--by", "module", "--json"))["layers"]


def test_what_does_not_fit_is_refused_in_a_sentence(regraft, recipe, trained):
    result = regraft("layers", recipe, "--metric", "angle")
    assert result.exit_code == 2
    assert "--metric angle: compares the weights before and after training, so give a run" in result.stderr
    result = regraft("layers", trained)
    assert result.exit_code == 2
    assert "give a recipe file" in result.stderr
    result = regraft("layers", recipe, "--metric", "fischer")
    assert result.exit_code == 2
    assert "did you mean 'fisher'" in result.stderr


@pytest.mark.inventory("checkpoint-inventory", by="regraft models")
def test_models_lists_as_a_table_and_as_json(regraft, tmp_path):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text('{"model_type": "bert", "license": "cc-by-nc-4.0"}')
    found = {each["name"]: each for each in shown(regraft("models", tmp_path, "--commercial", "--json"))}
    half = found[str(tmp_path / "half")]
    assert (half["usable"], half["commercial"], half["sha256"]) == (False, False, None)
    assert found["gpt-3"]["architecture"] == "closed"
    table = regraft("models", tmp_path).stdout
    assert "cc-by-nc-4.0" in table
    assert "gpt-3: closed" in table
    assert regraft("models", tmp_path / "missing").exit_code == 2


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, shared_data):
    """A recipe on real pictures and a network that was trained on their kind."""
    found = {
        "data": {
            "main": {
                "path": str(shared_data("cifar10_jpg")), "image": "img", "label": "label", "limit": 80,
                "limit_valid": 20, "limit_test": 100,
            }
        },
        "models": {"main": {"name": str(shared_data("weights_resnet20_cifar10"))}},
        "train": {"batch_size": 16, "optimizer": {"AdamW": {"lr": 0.001}}},
        "stages": [{"name": "adapt", "steps": 10}],
        "validate": {"times": 2},
        "techniques": [{"LastK": {"blocks": 3}}],
        "probe": {"folds": 2, "depths": "last"},
    }  # fmt: skip
    path = tmp_path_factory.mktemp("pictures") / "recipe.yaml"
    path.write_text(yaml.safe_dump(found))
    return path


@pytest.mark.inventory("scratch-vs-ft", by="regraft compare")
@pytest.mark.inventory("full-ft", by="regraft compare")
def test_compare_runs_both_at_one_budget_and_pretrained_weights_win_on_their_kind_of_picture(
    regraft, pictures, tmp_path
):
    everything = ("--set", "techniques=[]")
    tuned, scratch = shown(regraft("compare", pictures, "--out", tmp_path / "both", "--json", *everything))
    assert (tuned["name"], scratch["name"]) == ("fine-tuned", "from scratch")
    for same in ("rows", "steps", "trainable"):
        assert tuned[same] == scratch[same]
    assert tuned["flops"] == pytest.approx(scratch["flops"], rel=1e-6)
    assert tuned["score"] > scratch["score"] + 0.2
    assert tuned["start"].startswith("pretrained weights")
    assert scratch["start"] == "fresh weights"
    for arm in (tuned, scratch):
        assert arm["gap"] == pytest.approx(arm["train_score"] - arm["score"])
        assert min(arm["seconds"], arm["flops"]) > 0
    again = regraft("compare", pictures, "--out", tmp_path / "both")
    assert again.exit_code == 2
    assert "must be a new or empty folder" in again.stderr


@pytest.mark.inventory("few-data-ft", by="regraft curve")
def test_the_curve_over_shares_of_the_data_shows_what_each_strategy_needs(regraft, pictures, tmp_path):
    result = regraft("curve", pictures, "--out", tmp_path / "c", "--fractions", "0.25,1", "--quiet")
    assert result.exit_code == 0, result.stderr
    found = json.loads((tmp_path / "c" / "curve.json").read_text())
    scores = {(each["strategy"], each["rows"]): each["score"] for each in found["means"]}
    assert set(scores) == {(name, rows) for name in ("fine-tuned", "from scratch") for rows in (20, 80)}
    assert scores["fine-tuned", 20] > scores["from scratch", 80], "a quarter of the rows is enough on these weights"
    assert found["verdict"].startswith("fine-tuning reaches the")
    assert found["verdict"] in result.stdout
    assert all(point["course"] for point in found["points"])
    page = (tmp_path / "c" / "curve.html").read_text()
    assert page.count("<svg") == 2
    assert "<script" not in page


def test_shares_that_are_none_are_refused_before_anything_is_trained(regraft, pictures, tmp_path):
    for given in ("0.1,x", "0", "2"):
        result = regraft("curve", pictures, "--out", tmp_path / "c", "--fractions", given)
        assert result.exit_code == 2
        assert "--fractions: must be" in result.stderr


@pytest.mark.inventory("catastrophic-forgetting", by="regraft adapt")
def test_the_report_of_a_network_without_a_source_says_that_there_is_nothing_to_forget(finished):
    section = json.loads((finished / "metrics.json").read_text())["forgetting"]
    assert section == {
        "measured": False,
        "why": "The network began with fresh weights, so there is no source domain that it could forget.",
    }
    assert "no source domain that it could forget" in (finished / "report.html").read_text()
