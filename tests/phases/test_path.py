"""The main job on embedded samples: it ends, it repeats to the bit, and it goes on after a kill to the bits it would have had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from regraft.config.data import DataSpec
from regraft.config.recipe import ModelSpec, RecipeSpec, read_recipe
from regraft.errors import ConfigError, RunError
from regraft.phases.adapt import clearly_better
from regraft.phases.metering import forward_flops
from regraft.phases.path import job_recipe, plan_job, resume_job, run_job
from regraft.phases.progress import Silent


class Killed(Exception):
    """Stands for a process that is gone."""


class KilledAt(Silent):
    """A reporter that ends the process when a phase begins, or after so many steps of one."""

    def __init__(self, phase: str, after: int | None = None) -> None:
        self.at, self.after, self.now, self.done = phase, after, "", 0

    def phase(self, name: str, what: str, /) -> None:
        self.now = name
        if name == self.at and self.after is None:
            raise Killed(name)

    def advance(self, done: int, note: str = "", /) -> None:
        if self.now == self.at and self.after is not None:
            self.done += done
            if self.done >= self.after:
                raise Killed(self.now)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> RecipeSpec:
    """A plan for the diabetes table with two short trainings' worth of steps, checkpointed every 10."""
    spec = job_recipe(DataSpec(path="diabetes"), ModelSpec(), budget="600s", strategy="full")
    plan = plan_job(spec)
    assert plan.race is not None
    probe, full = plan.race.candidates
    race = plan.race.replaced(candidates=(probe, full.replaced(steps=60)))
    return plan.replaced(race=race, checkpoint=plan.checkpoint.replaced(every_steps=10))


@pytest.fixture(scope="module")
def whole(planned: RecipeSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_job(planned, tmp_path_factory.mktemp("whole") / "run").path


def final(run: Path) -> dict[str, bytes]:
    tensors = load_file(run / "phases" / "final.safetensors")
    return {name: value.numpy().tobytes() for name, value in tensors.items()}


def test_every_phase_leaves_its_files(whole):
    names = (
        "recipe.yaml",
        "manifest.json",
        "audit.json",
        "findings.csv",
        "metrics.json",
        "ledger.json",
        "events.jsonl",
        "report.html",
    )
    assert [name for name in names if not (whole / name).exists()] == []
    phases = [line["phase"] for line in json.loads((whole / "ledger.json").read_text())]
    assert phases == ["audit", "probe", "race", "adapt", "calibrate", "evaluate", "report"]


@pytest.mark.inventory("final-test", by="regraft adapt DATA")
def test_the_result_is_not_below_the_probe_on_validation(whole):
    metrics = json.loads((whole / "metrics.json").read_text())
    scores = {c["name"]: c["valid"]["score"] for c in metrics["candidates"]}
    assert metrics["test_uses"] == 1
    assert scores[metrics["winner"]] >= scores["probe"]


def test_the_same_recipe_gives_the_same_bits(whole, tmp_path):
    again = run_job(read_recipe(whole / "recipe.yaml"), tmp_path / "again").path
    assert final(again) == final(whole)
    ours, theirs = (json.loads((run / "metrics.json").read_text())["final"] for run in (again, whole))
    assert ours == theirs


@pytest.mark.parametrize(
    ("phase", "after"),
    [
        ("probe", None),
        ("race", None),
        ("adapt", None),
        ("adapt", 35),
        ("calibrate", None),
        ("evaluate", None),
        ("report", None),
    ],
)
def test_a_killed_job_ends_with_the_bits_it_would_have_had(whole, planned, tmp_path, phase, after):
    with pytest.raises(Killed):
        run_job(planned, tmp_path / "run", reporter=KilledAt(phase, after))
    resumed = resume_job(tmp_path / "run").path
    assert final(resumed) == final(whole)
    ours, theirs = (json.loads((run / "metrics.json").read_text())["final"] for run in (resumed, whole))
    assert ours == theirs
    steps = [
        json.loads(line)["step"]
        for line in (resumed / "events.jsonl").read_text().splitlines()
        if "loss" in json.loads(line)
    ]
    assert steps == list(range(1, 61))


def test_a_run_directory_that_holds_a_run_is_refused_and_left_alone(whole, planned):
    before = (whole / "metrics.json").read_bytes()
    with pytest.raises(RunError, match="holds a run already; continue it with `regraft resume"):
        run_job(planned, whole)
    assert (whole / "metrics.json").read_bytes() == before


def test_an_unknown_strategy_is_refused_with_the_nearest(tmp_path):
    spec = job_recipe(DataSpec(path="wine"), ModelSpec(), budget="60s", strategy="ful")
    with pytest.raises(ConfigError, match="no strategy is called 'ful'; did you mean 'full'"):
        run_job(spec, tmp_path / "run")


def test_resume_needs_a_run(tmp_path):
    with pytest.raises(RunError, match=r"is not a run directory \(it has no recipe.yaml\)"):
        resume_job(tmp_path)


def test_a_candidate_must_gain_more_than_the_standard_error_of_its_gain():
    targets = torch.zeros(100, dtype=torch.int64)
    right, wrong = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    base = torch.stack([right] * 80 + [wrong] * 20)
    noise = torch.stack([wrong] * 10 + [right] * 70 + [right] * 12 + [wrong] * 8)  # 12 rows won, 10 lost
    gain = torch.stack([right] * 92 + [wrong] * 8)  # 12 rows won, none lost
    assert not clearly_better(noise, base, targets, task="binary")
    assert clearly_better(gain, base, targets, task="binary")
    assert not clearly_better(base, base, targets, task="binary")


def test_with_no_fewer_correct_answers_a_lower_loss_is_a_gain():
    targets = torch.zeros(100, dtype=torch.int64)
    base = torch.stack([torch.tensor([1.0, 0.0])] * 80 + [torch.tensor([0.0, 1.0])] * 20)
    surer = torch.cat([base[:80] * 2, base[80:] * 0.5])  # surer where it is right, less sure where it is wrong
    assert clearly_better(surer, base, targets, task="binary")
    assert not clearly_better(base, surer, targets, task="binary")
    fewer = torch.cat([surer[:79], surer[99:], surer[80:]])
    assert not clearly_better(fewer, base, targets, task="binary")


def test_counting_flops_leaves_running_statistics_alone():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert forward_flops(network, {"x": torch.randn(4, 1, 8, 8)}) > 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_every_gate_of_the_ledger_states_its_numbers(whole):
    lines = {line["phase"]: line for line in json.loads((whole / "ledger.json").read_text())}
    gates = {name: line["gate"] for name, line in lines.items() if "gate" in line}
    assert set(gates) == {"audit", "probe", "adapt", "calibrate", "evaluate"}
    for name, gate in gates.items():
        assert isinstance(gate["passed"], bool)
        assert any(character.isdigit() for character in gate["sentence"]), name


@pytest.mark.inventory("freeze-probe-baseline", by="regraft adapt, regraft plan")
def test_every_plan_has_a_probe_that_is_run_and_recorded_before_anything_is_unfrozen(whole, planned):
    assert planned.probe is not None
    first = planned.race.candidates[0]
    assert (first.name, first.steps) == ("probe", 0)
    phases = [line["phase"] for line in json.loads((whole / "ledger.json").read_text())]
    assert phases.index("probe") < phases.index("race") < phases.index("adapt")
    assert json.loads((whole / "phases" / "probe.json").read_text())["chosen"]["valid"]["score"] is not None
    entries = json.loads((whole / "metrics.json").read_text())["candidates"]
    assert "probe" in [entry["name"] for entry in entries]
