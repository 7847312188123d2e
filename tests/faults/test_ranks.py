"""R8: processes that make each step together. One that is killed or freezes costs steps and no bits; nothing hangs."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.lab import file_hash, forked, record
from faults.test_checkpoint_faults import recipe

from regraft.config.recipe import RecipeSpec
from regraft.errors import ConfigError, RunError
from regraft.phases import ranks, train
from regraft.phases.path import job_recipe, run_job
from regraft.phases.progress import Silent
from regraft.phases.train import resume_training, train_job

SECONDS = 30.0  # within which a run has noticed
STEPS = 12


def spec(processes: int = 2, **changes) -> RecipeSpec:
    return recipe().replaced(processes=processes, **changes)


def children() -> list[int]:
    """The processes that a run of this process has started."""
    found = []
    for each in Path("/proc").iterdir():
        if not each.name.isdigit():
            continue
        try:
            state, parent = (each / "stat").read_text().rpartition(")")[2].split()[:2]
            started = b"regraft.parallel.worker" in (each / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        if started and int(parent) == os.getpid() and state != "Z":
            found.append(int(each.name))
    return found


class Signals(Silent):
    """Sends the other processes of the run a signal after a step; hears what is said, and when."""

    def __init__(self, step: int, number: int, times: int = 1) -> None:
        self.step, self.number, self.times = step, number, times
        self.made, self.sent_at, self.noticed = 0, 0.0, 0.0
        self.said: list[str] = []

    def advance(self, done: int, note: str = "", /) -> None:
        self.made += done
        if self.made >= self.step and self.times:
            self.made, self.times = 0, self.times - 1
            self.sent_at = time.monotonic()
            for pid in children():
                os.kill(pid, self.number)

    def say(self, sentence: str, /) -> None:
        self.said.append(sentence)
        if "newest checkpoint" in sentence:
            self.noticed = time.monotonic() - self.sent_at


@pytest.fixture(scope="module", autouse=True)
def _no_reports() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "write_report", lambda run: run)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run by two processes that nothing happened to."""
    return train_job(spec(), tmp_path_factory.mktemp("whole") / "run").path


def same(run: Path, whole: Path) -> bool:
    return file_hash(run / "phases/final.safetensors") == file_hash(whole / "phases/final.safetensors")


def killed_and_whole(folder: Path, whole: Path, chosen: random.Random) -> bool:
    """One run with a process killed after a random step: it ends with the same bits, and said in time what happened."""
    told = Signals(chosen.randint(1, STEPS - 1), signal.SIGKILL)
    run = train_job(spec(), folder, reporter=told).path
    assert any("process 2 of 2 was killed by SIGKILL" in sentence for sentence in told.said)
    assert told.noticed < SECONDS
    assert children() == []
    return same(run, whole)


def test_a_killed_process_costs_steps_and_no_bits(tmp_path, whole):
    chosen = random.Random(0)
    assert all(killed_and_whole(tmp_path / str(n), whole, chosen) for n in range(1))
    notes = json.loads((tmp_path / "0/phases/train.json").read_text())["notes"]
    assert any("went on from its newest checkpoint" in note for note in notes)
    assert "each step is made by 2 processes together" in notes


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_killed_processes(tmp_path, whole):
    chosen = random.Random(1)
    fine = sum(killed_and_whole(tmp_path / str(n), whole, chosen) for n in range(100))
    record(
        "kills of one of two processes that train together",
        {"runs": 100, "ended by themselves with the same bits": fine},
    )
    assert fine == 100


def test_a_frozen_process_is_killed_and_replaced(tmp_path, whole, monkeypatch):
    lead = ranks.lead
    monkeypatch.setattr(ranks, "lead", lambda *given, **more: lead(*given, **more, silent=2.0))
    told = Signals(5, signal.SIGSTOP)
    run = train_job(spec(), tmp_path / "run", reporter=told).path
    assert any("process 2 of 2 gave no sign of life for 2 s and was killed" in sentence for sentence in told.said)
    assert told.noticed < SECONDS
    assert same(run, whole)


@pytest.mark.slow
def test_a_run_whose_processes_die_again_and_again_ends_with_a_sentence_and_can_be_resumed(
    tmp_path, whole, monkeypatch
):
    monkeypatch.setattr(train, "LIVES", 1)
    with pytest.raises(RunError, match="process 2 of 2 was killed by SIGKILL, for the 2th time; `regraft resume"):
        train_job(spec(), tmp_path / "run", reporter=Signals(3, signal.SIGKILL, times=2))
    assert children() == []
    resume_training(tmp_path / "run")
    assert same(tmp_path / "run", whole)


def test_a_killed_leader_leaves_nobody_behind_and_the_run_can_be_resumed(tmp_path, whole):
    class Dies(Silent):
        made = 0

        def advance(self, done: int, note: str = "", /) -> None:
            self.made += done
            if self.made == 7:
                (tmp_path / "children").write_text(json.dumps(children()))
                os.kill(os.getpid(), signal.SIGKILL)

    assert forked(lambda: train_job(spec(), tmp_path / "run", reporter=Dies()) and None).code == -signal.SIGKILL
    left = json.loads((tmp_path / "children").read_text())
    assert len(left) == 1
    deadline = time.monotonic() + SECONDS
    while Path(f"/proc/{left[0]}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{left[0]}").exists()
    resume_training(tmp_path / "run")
    assert same(tmp_path / "run", whole)


def test_only_a_training_has_several_processes(tmp_path):
    one = job_recipe(spec().main_data(), spec().main_model())
    with pytest.raises(
        ConfigError, match="processes: 2 is for `regraft train`, whose steps they make together; the main"
    ):
        run_job(one.replaced(processes=2), tmp_path / "main")
    assert not (tmp_path / "main").exists()
