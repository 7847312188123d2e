"""Every file of `regraft_recipes` runs as it is, here at toy size."""

from __future__ import annotations

import json

import pytest

from regraft.config.recipe import MAIN, dump_recipe, parse_recipe, read_recipe
from regraft.phases import train
from regraft.phases.train import train_job
from regraft_recipes import recipes

FILES = recipes()
TOY = ("train.batch_size=8", "validate.times=1", "data.main.limit_valid=24", "data.main.limit_test=24")
SMALLER = {"maml": ("techniques.MAML.tasks=1",), "ewc": ("techniques.EWC.samples=8",)}
STEPS = 6  # enough for one in each part of a stage that is split
SHAPES = {"supervised", "distillation", "sam", "gan", "maml", "grpo", "dann", "ewc"}


def overrides(name: str) -> list[str]:
    """A few steps a stage on a few rows."""
    spec = read_recipe(FILES[name])
    steps = [f"stages.{index}.steps={STEPS}" for index in range(len(spec.stages))]
    rows = [] if name == "maml" else [f"data.{entry}.limit=48" for entry in spec.data]
    wide = ["data.main.limit_valid=80", "data.main.limit_test=80"] if name == "maml" else []
    wide += ["models.main.max_length=16"] if spec.models[MAIN].name else []
    return [*TOY, *steps, *rows, *wide, *SMALLER.get(name, ())]


@pytest.mark.parametrize("name", FILES)
def test_the_recipe_trains_at_toy_size(name, request, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "write_report", lambda run: run)  # the page has tests of its own
    if read_recipe(FILES[name]).models[MAIN].name == "minilm":
        request.getfixturevalue("minilm")
    spec = read_recipe(FILES[name], overrides(name))
    run = train_job(spec, tmp_path / "run")
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    assert sum("loss" in event for event in events) == STEPS * len(spec.stages)
    assert (run.path / "model" / "model.json").is_file()


@pytest.mark.parametrize("name", FILES)
def test_the_recipe_says_what_it_shows_and_what_to_expect(name):
    head = FILES[name].read_text().partition("seed:")[0]
    assert "# Shows: " in head
    assert "# Expect" in head
    assert all(line.startswith("#") for line in head.splitlines())


@pytest.mark.parametrize("name", FILES)
def test_the_recipe_survives_being_written_and_read(name):
    spec = read_recipe(FILES[name])
    assert parse_recipe(dump_recipe(spec)) == spec


def test_every_shape_of_training_has_a_recipe():
    assert set(FILES) >= SHAPES | {"lora", "adapter", "staged_thaw", "cache_prefix", "weight_average"}
