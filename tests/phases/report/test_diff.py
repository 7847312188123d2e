"""The comparison of two runs: intervals of differences against a formula, and only what differs of the recipes."""

from __future__ import annotations

import json
import math

import pytest

from regraft.errors import RunError
from regraft.phases.report.diff import diff_runs


def make(run, *, accuracy, ece, recipe, fingerprint="same", task="binary", flops=5):
    run.mkdir()
    final = {"test": {"accuracy": accuracy, "ece": ece, "n": {"value": 100}}}
    (run / "metrics.json").write_text(json.dumps({"task": task, "final": final}))
    (run / "manifest.json").write_text(json.dumps({"data": {"fingerprint": fingerprint}}))
    (run / "ledger.json").write_text(json.dumps([{"phase": "adapt", "seconds": 3.0, "flops": flops}]))
    (run / "recipe.yaml").write_text(recipe)
    return run


def entry(value, low, high):
    return {"value": value, "low": low, "high": high}


def test_the_interval_of_a_difference_squares_and_adds_the_two_margins(tmp_path):
    a = make(tmp_path / "a", accuracy=entry(0.80, 0.78, 0.82), ece=entry(0.05, 0.04, 0.06), recipe="seed: 0\n")
    b = make(tmp_path / "b", accuracy=entry(0.86, 0.83, 0.88), ece=entry(0.02, 0.01, 0.03), recipe="seed: 0\n")
    rows = {row.name: row for row in diff_runs(a, b)}
    accuracy = rows["test/accuracy"]
    assert accuracy.difference == pytest.approx(0.06)
    assert accuracy.low == pytest.approx(0.06 - math.hypot(0.03, 0.02))
    assert accuracy.high == pytest.approx(0.06 + math.hypot(0.02, 0.02))
    assert (accuracy.better, rows["test/ece"].better) == ("b", "b")  # a lower calibration error is better
    assert not [row for row in rows.values() if row.section in ("recipe", "note")]


def test_a_difference_within_the_noise_has_no_winner(tmp_path):
    a = make(tmp_path / "a", accuracy=entry(0.80, 0.77, 0.83), ece=entry(0.05, 0.01, 0.09), recipe="")
    b = make(tmp_path / "b", accuracy=entry(0.81, 0.78, 0.84), ece=entry(0.04, 0.01, 0.09), recipe="", flops=4)
    rows = {row.name: row for row in diff_runs(a, b)}
    assert rows["test/accuracy"].better is None
    assert rows["flops"].better == "b"
    assert rows["seconds"].better is None  # a time is not a count


def test_only_the_recipe_fields_that_differ_are_listed_by_their_dotted_names(tmp_path):
    one = entry(0.8, 0.7, 0.9)
    a = make(tmp_path / "a", accuracy=one, ece=one, recipe="seed: 0\ntechniques:\n- LoRA: {rank: 8}\n- SAM\n")
    b = make(tmp_path / "b", accuracy=one, ece=one, recipe="seed: 0\ntechniques:\n- LoRA: {rank: 16}\n")
    found = [(row.name, row.a, row.b) for row in diff_runs(a, b) if row.section == "recipe"]
    assert found == [("techniques[0].LoRA.rank", 8, 16), ("techniques[1]", "SAM", None)]


@pytest.mark.inventory("one-change", by="regraft diff RUN RUN")
def test_exactly_the_changed_keys_are_shown_and_more_than_one_is_warned_of(tmp_path):
    from regraft.config.recipe import dump_recipe, parse_recipe
    from regraft.phases.resolve import resolved

    text = "data: {main: {path: wine}}\nmodels: {main: {network: MLP}}\nstages: [{name: a, steps: 2}]"
    changes = {
        "a": [], "one": ["train.batch_size=64"],
        "other": ["train.optimizer=SGD"],
        "scaled": ["train.batch_size=64", "train.scale_from.batch_size=32"],
    }  # fmt: skip
    one, runs = entry(0.8, 0.7, 0.9), {}
    for name, overrides in changes.items():
        recipe = dump_recipe(resolved(parse_recipe(text, overrides=overrides)))  # as a run writes it
        runs[name] = make(tmp_path / name, accuracy=one, ece=one, recipe=recipe)

    def compared(other):
        lines = diff_runs(runs["a"], runs[other])
        notes = [line.name for line in lines if line.section == "note"]
        return notes, [(line.name, line.a, line.b) for line in lines if line.section == "recipe"]

    assert compared("a") == ([], [])
    assert compared("one") == ([], [("train.batch_size", 32, 64)])
    notes, keys = compared("scaled")
    assert keys == [("train.batch_size", 32, 64), ("train.optimizer.AdamW.lr", 0.001, 0.002)]
    assert len(notes) == 1
    assert notes[0].startswith("warning: 2 keys of the recipes differ")
    assert compared("other") == ([], [("train.optimizer", "AdamW", "SGD")])


def test_other_data_or_another_task_is_said_first(tmp_path):
    one = entry(0.8, 0.7, 0.9)
    a = make(tmp_path / "a", accuracy=one, ece=one, recipe="")
    b = make(tmp_path / "b", accuracy=one, ece=one, recipe="", fingerprint="other", task="multiclass")
    assert [row.section for row in diff_runs(a, b)][:3] == ["note", "note", "metric"]


def test_a_recipe_that_is_not_yaml_is_refused_in_one_sentence(tmp_path):
    one = entry(0.8, 0.7, 0.9)
    a = make(tmp_path / "a", accuracy=one, ece=one, recipe="a: [1\n")
    with pytest.raises(RunError, match=r"recipe\.yaml: must be YAML, but") as error:
        diff_runs(a, a)
    assert "\n" not in str(error.value)
