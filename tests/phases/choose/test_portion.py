"""Of many rows the heights are compared on a sample, and heads fitted on as many as have room; nothing else changes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from regraft.config.data import DataSpec
from regraft.config.recipe import ModelSpec, read_recipe
from regraft.phases.choose import portion
from regraft.phases.choose.features import all_features, head_outputs
from regraft.phases.choose.fit import Problem
from regraft.phases.choose.portion import Room, sampled
from regraft.phases.choose.probe_phase import load_heads
from regraft.phases.job import Job
from regraft.phases.path import job_recipe, plan_job, resume_job, run_job
from regraft.phases.progress import Silent
from regraft.phases.rundir import RECIPE

READS = {(depth, pool): 10 for depth in range(5) for pool in ("mean", "max")}


class Killed(BaseException):
    """What a reporter raises where the process is to end."""


class EndsAt(Silent):
    """Ends the process at the start of a phase."""

    def __init__(self, phase: str) -> None:
        self.at = phase

    def phase(self, name: str, what: str, /) -> None:
        if name == self.at:
            raise Killed


def room(task: str = "multiclass", rows: int = 1000, **changes) -> Room:
    targets = torch.arange(rows) % 4 if task == "multiclass" else torch.randn(rows)
    options = {"widths": READS, "problem": Problem(task=task, num_outputs=4), "seed": 0} | changes
    return Room(targets=targets, **options)


def test_where_all_heights_of_all_rows_have_room_everything_is_read_in_fp32():
    whole = room().to_compare()
    assert (whole.rows, whole.reads, whole.half) == (None, None, False)


@pytest.mark.parametrize("spare", [0, -1])
def test_the_room_counts_every_height_look_and_row_of_validation(monkeypatch, spare):
    monkeypatch.setattr(portion, "ROOM", 4 * 100 * (1000 + 200) * 3 + spare)
    monkeypatch.setattr(portion, "COMPARED", 300)
    rows = room(beside=200, looks=3).to_compare().rows
    assert (rows is None) == (spare == 0)
    if rows is not None:
        assert len(rows) == 300
        assert (np.bincount(rows % 4) == 75).all()  # each class keeps its share


@pytest.mark.parametrize(("task", "size"), [("multiclass", 2), ("regression", 4)])
def test_heads_are_fitted_on_as_many_rows_as_have_room(monkeypatch, task, size):
    monkeypatch.setattr(portion, "ROOM_OF_HEADS", 4 * 20 * 600)
    monkeypatch.setattr(portion, "COMPARED", 100)
    some = room(task, rows=2000, beside=100).to_fit([(1, "mean"), (4, "max")])
    assert some.rows is not None
    assert (len(some.rows) + 100) * 20 * size == portion.ROOM_OF_HEADS
    assert some.half is (size == 2)
    assert room(task, rows=500, beside=100).to_fit([(1, "mean"), (4, "max")]).rows is None


def test_a_sample_is_a_function_of_the_seed():
    problem, targets = Problem(task="multiclass", num_outputs=4), torch.arange(1000) % 4
    one, again, other = (sampled(targets, problem, 100, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert sampled(targets, problem, 1000, seed=0) is None


@pytest.fixture(scope="module")
def planned(minilm):
    data = DataSpec(path="stdlib-docstrings", limit=400, limit_valid=80, limit_test=40)
    model = ModelSpec(name=str(minilm), max_length=16)
    return plan_job(job_recipe(data, model, budget="120s", strategy="probe"))


@pytest.fixture
def little_room(monkeypatch, tmp_path):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(portion, "ROOM", 1 << 20)
    monkeypatch.setattr(portion, "COMPARED", 200)
    monkeypatch.setattr(portion, "ROOM_OF_HEADS", 1 << 20)


def test_a_job_with_little_room_says_so_and_is_nearly_as_good(planned, tmp_path, little_room, monkeypatch):
    some = run_job(planned, tmp_path / "some").path
    monkeypatch.undo()
    whole = run_job(planned, tmp_path / "whole").path
    said, metrics = [], []
    for run in (some, whole):
        said.append(json.loads((run / "phases" / "probe.json").read_text())["sentences"])
        metrics.append(json.loads((run / "metrics.json").read_text())["probe"]["test"]["accuracy"]["value"])
    assert any(s.startswith("heights were compared on 200 of 400 training rows; heads are fitted on ") for s in said[0])
    assert not any("heights were compared on" in s for s in said[1])
    assert abs(metrics[0] - metrics[1]) < 0.15


def test_labels_are_judged_on_the_same_rows_after_a_resume(planned, tmp_path, little_room):
    whole = run_job(planned, tmp_path / "whole").path
    with pytest.raises(Killed):
        run_job(planned, tmp_path / "run", reporter=EndsAt("suspects"))
    resumed = resume_job(tmp_path / "run").path
    for name in ("audit.json", "phases/suspects.json"):
        assert (resumed / name).read_text() == (whole / name).read_text()
    ours, theirs = (json.loads((run / "metrics.json").read_text()) for run in (resumed, whole))
    assert (ours["final"], ours["probe"]) == (theirs["final"], theirs["probe"])


def test_outputs_of_heads_are_those_on_all_features(planned, tmp_path):
    run = run_job(planned, tmp_path / "run")
    job = Job(run, read_recipe(run.path / RECIPE))
    heads, encoded = load_heads(job), job.materials.encoded("test")
    features = all_features(job.base, encoded, precision="fp32")
    asked = {name: (one.reads, *one.head.on_raw()) for name, one in heads.items()}
    for name, outputs in head_outputs(job.base, encoded, asked, precision="fp32").items():
        torch.testing.assert_close(outputs, heads[name].logits(features), rtol=1e-4, atol=1e-4)
