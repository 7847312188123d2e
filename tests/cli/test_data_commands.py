"""audit and plan: what they print, what they write, and with which code they end."""

from __future__ import annotations

import json

from cli.tables import HEADER, points, write_csv

from regraft.config.recipe import read_recipe


def test_audit_of_sound_data_ends_with_0_and_writes_nothing(regraft, table):
    before = sorted(table.parent.iterdir())
    result = regraft("audit", table)
    assert result.exit_code == 0
    assert "0 errors" in result.stdout
    assert sorted(table.parent.iterdir()) == before


def test_audit_shows_what_was_detected_and_how_to_override_it(regraft, table):
    shown = regraft("audit", table).stderr
    assert "label: kind (binary, 2 classes: a, b)" in shown
    assert "override with --label" in shown


def test_audit_with_errors_ends_with_1_and_its_json_names_the_rows(regraft, tmp_path):
    data = write_csv(tmp_path / "data.csv", HEADER, [*points(), [1, 2, "north", ""]])
    result = regraft("audit", data, "--label", "kind", "--json")
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert content["format"] == "regraft.audit/1"
    assert [f["rows"] for f in content["findings"] if f["severity"] == "error"] == [[120]]
    assert result.stderr == ""


def test_audit_writes_its_files_only_to_a_new_folder(regraft, table, tmp_path):
    assert regraft("audit", table, "--out", tmp_path / "audit").exit_code == 0
    assert {file.name for file in (tmp_path / "audit").iterdir()} == {"audit.json", "findings.csv"}
    again = regraft("audit", table, "--out", tmp_path / "audit", "--quiet")
    assert again.exit_code == 2
    assert "must be a new or empty folder" in again.stderr


def test_fix_writes_a_copy_without_the_bad_rows_and_leaves_the_original(regraft, tmp_path):
    data = write_csv(tmp_path / "data.csv", HEADER, [*points(), [1, 2, "north", ""]])
    before = data.read_bytes()
    result = regraft("audit", data, "--label", "kind", "--fix", tmp_path / "clean", "--quiet")
    assert result.exit_code == 1  # errors were found; the copy no longer has them
    assert data.read_bytes() == before
    assert "dropped: 1 of train" in result.stdout
    assert regraft("audit", tmp_path / "clean", "--label", "kind", "--quiet").exit_code == 0


def test_a_plan_is_a_recipe_that_adapt_takes_and_that_does_the_same_steps(regraft, table, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    result = regraft("plan", table, "--budget", "15s", "--out", recipe, "--quiet", "--seed", "3")
    assert result.exit_code == 0, result.stderr
    planned = read_recipe(recipe)
    assert planned.race is not None
    assert planned.seed == 3
    done = [regraft("adapt", recipe, "--out", tmp_path / name, "--quiet") for name in ("one", "two")]
    assert [each.exit_code for each in done] == [0, 0], done[0].stderr
    assert read_recipe(tmp_path / "one" / "recipe.yaml").race == planned.race
    one, two = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_plan_without_out_is_printed_and_nothing_is_written(regraft, table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = regraft("plan", table, "--budget", "15s", "--strategy", "probe", "--quiet")
    assert "format: regraft.recipe/1" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_plan_does_not_overwrite_a_recipe(regraft, table, tmp_path):
    (tmp_path / "recipe.yaml").write_text("mine")
    result = regraft("plan", table, "--out", tmp_path / "recipe.yaml", "--quiet")
    assert result.exit_code == 2
    assert (tmp_path / "recipe.yaml").read_text() == "mine"


def test_any_field_can_be_set(regraft, table):
    result = regraft(
        "plan", table, "--strategy", "probe", "--json", "--set", "seed=7", "--set", "checkpoint.every_steps=50", "--set",
        "data.main.test=0.3",
    )  # fmt: skip
    content = json.loads(result.stdout)
    assert (content["seed"], content["checkpoint"], content["data"]["main"]["test"]) == (7, {"every_steps": 50}, 0.3)
