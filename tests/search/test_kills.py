"""Searches of real training whose workers, or which themselves, are killed: the end is the one they would have had."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regraft.config.recipe import parse_recipe
from regraft.search import run as run_module
from regraft.search.run import resume_search, search

RECIPE = """
data: {main: {path: wine}}
models: {main: {network: {MLP: {width: 16, depth: 1}}}}
stages: [{name: adapt, steps: 60}]
checkpoint: {every_steps: 5}
search:
  method: ASHA
  trials: 9
  window: 4
  metric: loss
  fidelity: {steps: 0.3}
  space: {train.optimizer.AdamW.lr: {log: [1.0e-4, 1.0e-1]}}
"""
KEPT = ("trial", "state", "level", "score", "loss", "steps", "values")


def dying_leg(work: dict) -> dict:
    """A leg; in the first attempt at leg 2 the process is killed at its 12th step."""
    from regraft.search import trial

    mark = Path(work["out"]) / "killed"
    step = trial.Checkpointer.on_step

    def deadly(self, run, loss):
        step(self, run, loss)
        if run.clock.step == 12:
            mark.touch()
            self.writer.wait()
            os.kill(os.getpid(), signal.SIGKILL)

    trial.Checkpointer.on_step = deadly if work["leg"]["number"] == 2 and not mark.exists() else step
    return trial.run_leg(work)


def rows(found: dict) -> list:
    return [[trial[name] for name in KEPT] for trial in found["trials"]]


@pytest.mark.slow
@pytest.mark.inventory("asha", by="regraft search --workers 2")
def test_a_trial_whose_worker_is_killed_goes_on_from_its_checkpoint_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    whole = search(parse_recipe(RECIPE), tmp_path / "whole")
    monkeypatch.setattr(run_module, "TARGET", "search.test_kills:dying_leg")
    found = search(parse_recipe(RECIPE), tmp_path / "killed", workers=2)
    assert (tmp_path / "killed" / "killed").exists()
    assert found["cost"]["workers_lost"] == 1
    assert rows(found) == rows(whole)
    records = [json.loads(line) for line in (tmp_path / "killed" / "journal.jsonl").read_text().splitlines()]
    assert [r["RETRY"]["reason"] for r in records if "RETRY" in r] == ["was killed by SIGKILL"]


@pytest.mark.slow
def test_a_search_that_is_killed_again_and_again_ends_as_one_that_was_not(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    whole = search(parse_recipe(RECIPE), tmp_path / "whole")
    out = tmp_path / "out"
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    for kill in range(2):
        first = [sys.executable, "-m", "regraft", "search", str(file), "--out", str(out), "--quiet"]
        done = len((out / "journal.jsonl").read_bytes()) if (out / "journal.jsonl").exists() else 0
        process = subprocess.Popen([*first, *(["--resume"] if kill else [])], env=environment)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if (out / "journal.jsonl").exists() and len((out / "journal.jsonl").read_bytes()) > done + 400:
                process.kill()
            time.sleep(0.05)
        process.wait()
    found = resume_search(out)
    assert rows(found) == rows(whole)
    records = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    ends = [r["end"]["leg"] for r in records if "end" in r]
    assert sorted(ends) == sorted(set(ends)) == [r["ask"]["number"] for r in records if "ask" in r]
