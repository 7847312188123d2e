"""The same search on a local Ray cluster of two workers and in one process, and one of whose workers is killed."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from regraft.config.recipe import RecipeSpec, parse_recipe
from regraft.errors import ConfigError
from regraft.search.engine import Engine
from regraft.search.journal import Journal
from regraft.search.methods import Random
from regraft.search.run import search
from regraft.search.space import Space

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="ray is not installed; pip install 'regraft[cluster]'")


def recipe(method: str) -> RecipeSpec:
    return parse_recipe(f"""
data: {{main: {{path: wine}}}}
models: {{main: {{network: {{MLP: {{width: 16, depth: 1}}}}}}}}
stages: [{{name: adapt, steps: 27}}]
search:
  method: {method}
  trials: 9
  seed: 2
  window: 4
  metric: loss
  space:
    train.optimizer.AdamW.lr: {{log: [1.0e-4, 1.0e-1]}}
    train.batch_size: {{log_int: [8, 64]}}
""")


@pytest.fixture
def on_the_path(monkeypatch):
    """What Ray's workers import from: they are processes of their own."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_without_ray_it_is_said_what_to_install(tmp_path):
    with pytest.raises(ConfigError, match=r"pip install 'regraft\[cluster\]'"):
        search(recipe("TPE"), tmp_path / "out", ray="local")


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["TPE", "ASHA"])
def test_on_two_workers_of_a_cluster_the_search_finds_what_it_finds_in_one_process(tmp_path, on_the_path, method):
    here = search(recipe(method), tmp_path / "here")
    there = search(recipe(method), tmp_path / "there", workers=2, ray="local")
    assert there["best"] == here["best"]
    kept = ("trial", "state", "level", "score", "loss", "steps", "values")
    assert [[t[k] for k in kept] for t in there["trials"]] == [[t[k] for k in kept] for t in here["trials"]]


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_of_a_cluster_loses_nothing(tmp_path, on_the_path):
    from regraft.integrations.ray import RayWorkers

    space = Space({"x": {"uniform": [-5, 10]}, "y": {"uniform": [0, 15]}})
    made = Engine(Random().start(space, shares=(1.0,), trials=8, seed=3), Journal(tmp_path / "journal.jsonl"))
    pool = RayWorkers("local", 2, "toy_search:fragile")
    try:
        kill = {"1": 1, "4": 1, "6": 2}
        assert made.run(pool, lambda leg: {"leg": leg.to_json(), "marks": str(tmp_path), "kill": kill})
    finally:
        pool.close()
    records = [json.loads(line) for line in Path(tmp_path / "journal.jsonl").read_text().splitlines()]
    assert sorted(r["end"]["leg"] for r in records if "end" in r) == list(range(8))
    assert sum("RETRY" in r for r in records) == 3
    assert {n for n, o in made.outcomes.items() if o.state == "FAIL"} == {6}
