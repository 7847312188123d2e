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
