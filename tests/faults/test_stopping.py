"""SIGTERM and SIGINT: the run is saved after the step it is in, says how to go on, and ends with the same bits when it does."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.lab import Forked, file_hash, forked, record
from faults.test_checkpoint_faults import Reporter, recipe
from typer.testing import CliRunner

from regraft.config.data import DataSpec
from regraft.config.recipe import ModelSpec, RecipeSpec, dump_recipe
from regraft.core.checkpoint import find_newest
from regraft.core.stopping import Interrupted
from regraft.errors import RunError
from regraft.phases import finish, train
from regraft.phases.choose import race
from regraft.phases.path import job_recipe, plan_job, resume_job, run_job
from regraft.phases.progress import Silent
from regraft.phases.train import resume_training, train_job
from regraft.phases.training import StepCounter

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


class Signalled(Reporter):
    """Sends its own process signals: at a step, or at a word in a phase."""

    def __init__(self, number: int, *, step: int | None = None, phase: str = "", times: int = 1) -> None:
        super().__init__()
        self.number, self.step, self.at, self.times = number, step, phase, times
        self.made, self.now = 0, ""

    def phase(self, name: str, what: str, /) -> None:
        self.now = name
        if self.step is None and name == self.at:
            self._send()

    def advance(self, done: int, note: str = "", /) -> None:
        if self.now == (self.at or "train"):
            self.made += done
            if self.step is not None and self.made >= self.step:
                self._send()

    def _send(self) -> None:
        for _ in range(self.times):
            os.kill(os.getpid(), self.number)
        self.step = 10**9


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "write_report", lambda run: run)
        patch.setattr(finish, "write_report", lambda run: run)
        yield train_job(recipe(), tmp_path_factory.mktemp("whole") / "run").path


def same(run: Path, whole: Path) -> bool:
    return all(
        file_hash(run / name) == file_hash(whole / name) for name in ("phases/final.safetensors", "events.jsonl")
    )


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("step", [1, 4, 7, 11])
def test_a_training_that_is_asked_to_stop_is_saved_at_that_step(tmp_path, whole, number, step):
    with pytest.raises(Interrupted) as stopped:
        train_job(recipe(), tmp_path / "run", reporter=Signalled(number, step=step))
    assert stopped.value.exit_code == CODES[number]
    found, damaged = find_newest(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert (found[0]["step"], damaged) == (step, [])
    resume_training(tmp_path / "run")
    assert same(tmp_path / "run", whole)


class InAStep(StepCounter):
    """Sends a signal while a step is under way: before any hook that could save it has acted."""

    def on_step(self, run, loss) -> None:
        if run.clock.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        super().on_step(run, loss)


@pytest.mark.parametrize("job", ["train", "adapt"])
def test_a_signal_within_a_step_waits_for_the_step_to_be_saved(tmp_path, planned, monkeypatch, job):
    monkeypatch.setattr(train if job == "train" else race, "StepCounter", InAStep)
    with pytest.raises(Interrupted):
        train_job(recipe(), tmp_path / "run") if job == "train" else run_job(planned, tmp_path / "run")
    found, _ = find_newest(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert found[0]["step"] == 5


def test_after_the_last_step_of_a_training_the_run_stops_before_its_next_phase(tmp_path, whole):
    with pytest.raises(Interrupted):
        train_job(recipe(), tmp_path / "run", reporter=Signalled(signal.SIGTERM, step=12))
    assert (tmp_path / "run" / "phases" / "train.json").exists()
    assert not (tmp_path / "run" / "phases" / "evaluate.json").exists()
    resume_training(tmp_path / "run")
    assert same(tmp_path / "run", whole)


def test_the_second_signal_ends_at_once(tmp_path, whole):
    for number in CODES:
        out = tmp_path / str(number)
        ended = forked(
            lambda out=out, number=number: train_job(recipe(), out, reporter=Signalled(number, step=3, times=2))
        )
        assert ended.code == -number
        assert not (out / "checkpoints" / "step-00000003").exists()
        resume_training(out)
        assert same(out, whole)


def times(tmp_path: Path, whole: Path, count: int) -> dict[str, int]:
    """Signals from outside at random instants: how many runs stopped, or had ended, and went on to the same bits."""
    chosen, counts = random.Random(5), {"signals": count, "stopped": 0, "ended before": 0, "same bits": 0}
    for turn in range(count):
        out, number = tmp_path / str(turn), chosen.choice(list(CODES))

        def work(out: Path = out) -> int:
            try:
                train_job(recipe(), out)
            except Interrupted as stopped:
                return stopped.exit_code
            return 0

        process = Forked(work)
        while not (out / "recipe.yaml").exists():  # until then nothing is there to go on with
            pass
        end = chosen.uniform(0.0, 0.12)
        signal.sigtimedwait([signal.SIGUSR2], end)
        os.kill(process.pid, number)
        ended = process.wait()
        if ended.code == -number:  # it came when the run had ended and the process had not: nobody listens any more
            assert same(out, whole)
        code = 0 if ended.code == -number else ended.result()
        assert code in (0, CODES[number])
        counts["stopped" if code else "ended before"] += 1
        resume_training(out)
        counts["same bits"] += same(out, whole)
    return counts


def test_signals_at_random_instants_lose_nothing(tmp_path, whole):
    counts = times(tmp_path, whole, 6)
    record("signals, sample", counts)
    assert counts["same bits"] == counts["signals"]


@pytest.mark.slow
def test_many_signals_at_random_instants_lose_nothing(tmp_path, whole):
    counts = times(tmp_path, whole, 100)
    record("signals", counts)
    assert counts["same bits"] == counts["signals"]
    assert counts["stopped"] >= 20


# ---- the main job


@pytest.fixture(scope="module")
def planned(whole) -> RecipeSpec:
    """A plan for the diabetes table with a short training."""
    plan = plan_job(job_recipe(DataSpec(path="diabetes"), ModelSpec(), budget="600s", strategy="full"))
    assert plan.race is not None
    probe, full = plan.race.candidates
    return plan.replaced(race=plan.race.replaced(candidates=(probe, full.replaced(steps=20))))


@pytest.fixture(scope="module")
def adapted(planned, tmp_path_factory) -> Path:
    return run_job(planned, tmp_path_factory.mktemp("adapted") / "run").path


PHASES = ["audit", "probe", "race", "adapt", "calibrate", "evaluate"]


@pytest.mark.parametrize("phase", PHASES)
def test_a_job_that_is_asked_to_stop_in_a_phase_ends_with_the_same_bits(tmp_path, planned, adapted, phase):
    out = tmp_path / "run"
    step = 7 if phase == "adapt" else None
    with pytest.raises(Interrupted):
        run_job(planned, out, reporter=Signalled(signal.SIGTERM, phase=phase, step=step))
    assert not (
        out / "phases" / f"{PHASES[PHASES.index(phase) + 1] if phase != 'evaluate' else 'report'}.json"
    ).exists()
    if phase == "adapt":
        found, _ = find_newest(out / "checkpoints")
        assert found is not None
        assert 7 <= found[0]["step"] < 20
    resume_job(out)
    assert same(out, adapted)


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("phases/probe.safetensors", "probe"),
        ("phases/probe_chosen_valid.npy", "probe"),
        ("phases/final.safetensors", "adapt"),
        ("phases/final_valid.npy", "adapt"),
        ("model/model.safetensors", "calibrate"),
    ],
)
def test_a_damaged_file_that_later_phases_use_has_its_phase_run_again(tmp_path, planned, adapted, name, again):
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        run_job(planned, out, reporter=Signalled(signal.SIGTERM, phase="evaluate"))
    raw = bytearray((out / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (out / name).write_bytes(raw)
    heard = Reporter()
    resume_job(out, reporter=heard)
    assert f"{out / name}: missing or damaged since it was written; {again} runs again" in heard.sentences
    assert same(out, adapted)
    for each in ("phases/probe.safetensors", "phases/final_valid.npy", "model/preprocessing.json"):
        assert file_hash(out / each) == file_hash(adapted / each), each


@pytest.mark.parametrize("files", [["phases/race.json"], ["checkpoints"], ["phases/race.json", "checkpoints"]])
def test_a_winner_whose_state_is_damaged_is_found_and_trained_once_more(tmp_path, planned, adapted, files):
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        run_job(planned, out, reporter=Signalled(signal.SIGTERM, phase="adapt", step=7))
    for name in files:
        for file in sorted((out / name).rglob("manifest.json")) or [out / name]:
            file.write_bytes(file.read_bytes()[:-3])
    heard = Reporter()
    resume_job(out, reporter=heard)
    assert any("race.json: missing or damaged" in s for s in heard.sentences) == ("phases/race.json" in files)
    assert same(out, adapted)


# ---- the command line


def test_the_command_says_how_to_go_on_and_ends_with_the_code_of_the_signal(tmp_path, whole, monkeypatch):
    from regraft.cli.app import app

    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe()))
    for number, code in CODES.items():
        out, calls = tmp_path / str(code), []

        def advance(self, done, note="", calls=calls, number=number):
            calls.append(done)
            if len(calls) == 5:
                os.kill(os.getpid(), number)

        with monkeypatch.context() as patch:
            patch.setattr(Silent, "advance", advance)
            said = CliRunner().invoke(app, ["train", str(tmp_path / "recipe.yaml"), "--out", str(out), "--quiet"])
        assert said.exit_code == code
        assert said.stderr == f"regraft: stopped; {out} holds what is done, go on with `regraft resume {out}`\n"
        with pytest.raises(RunError, match="holds a run already"):
            train_job(recipe(), out)
        resume_training(out)
        assert same(out, whole)
