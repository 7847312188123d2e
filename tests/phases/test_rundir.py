"""One process at a time in a run directory, and what phases left there is verified before it is used."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from faults.lab import Forked

from regraft.errors import RunError
from regraft.phases.progress import Silent
from regraft.phases.rundir import RECIPE, EventLog, RunDirectory
from regraft.phases.working import working


class Heard(Silent):
    def __init__(self) -> None:
        self.sentences: list[str] = []

    def say(self, sentence: str, /) -> None:
        self.sentences.append(sentence)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    made = RunDirectory.create(tmp_path / "run")
    made.save_array("phases/a.npy", np.arange(5))
    made.write_text("model/model.json", "{}")
    made.finish("probe", {"score": 0.5}, files=["phases/a.npy", "model"])
    return made


# ---- what phases left


def test_a_finished_phase_is_done_and_its_sums_are_those_of_sha256sum(run):
    again = RunDirectory(run.path)
    assert again.done("probe") == {"format": "regraft.phase/1", "score": 0.5}
    assert again.done("race") is None
    command = shutil.which("sha256sum")
    if command is None:
        pytest.skip("sha256sum is not installed")
    said = subprocess.run(
        [command, "-c", "phases/probe.sha256"], cwd=run.path, capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines() == ["phases/a.npy: OK", "model/model.json: OK", "phases/probe.json: OK"]


FILES = ["phases/a.npy", "model/model.json", "phases/probe.json", "phases/probe.sha256"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["flip", "cut", "line", "remove", "empty", "swap"])
def test_a_phase_whose_files_were_damaged_runs_again_and_the_file_is_named(run, name, how):
    file = run.path / name
    raw = bytearray(file.read_bytes())
    if how == "flip":
        raw[len(raw) // 2] ^= 4
        file.write_bytes(raw)
    elif how == "cut":
        file.write_bytes(raw[:-1])
    elif how == "line":  # the last whole line is lost
        file.write_bytes(raw[: raw[:-1].rfind(b"\n") + 1])
    elif how == "remove":
        file.unlink()
        if name == "phases/probe.json":  # a phase without its file is one that never ended
            assert RunDirectory(run.path).done("probe") is None
            return
    elif how == "empty":
        file.write_bytes(bytes(len(raw)))
    else:
        file.write_bytes((run.path / FILES[FILES.index(name) - 1]).read_bytes())
    again, heard = RunDirectory(run.path), Heard()
    again.say = heard.say
    assert again.done("probe") is None
    (sentence,) = heard.sentences
    assert sentence.endswith(": missing or damaged since it was written; probe runs again")
    assert name in sentence or name.endswith(".sha256")  # a changed sum speaks against the file it is of
    again.save_array("phases/a.npy", np.arange(5))
    again.write_text("model/model.json", "{}")
    again.finish("probe", {"score": 0.5}, files=["phases/a.npy", "model"])
    assert RunDirectory(run.path).done("probe") is not None


def test_every_bit_of_the_files_of_a_phase_counts(run):
    missed = []
    for name in ("phases/probe.json", "phases/probe.sha256"):
        raw = (run.path / name).read_bytes()
        for bit in range(0, 8 * len(raw), 7):
            changed = bytearray(raw)
            changed[bit // 8] ^= 1 << bit % 8
            (run.path / name).write_bytes(changed)
            missed += [bit] if RunDirectory(run.path)._damaged("probe") is None else []
        (run.path / name).write_bytes(raw)
    assert missed == []


# ---- whole or not at all


@pytest.mark.parametrize("during", ["open", "fsync", "rename"])
def test_a_file_that_cannot_be_written_leaves_the_old_one_and_is_told_as_a_sentence(run, monkeypatch, during):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    before = sorted(run.path.rglob("*"))
    for write in (lambda: run.write_text("model/model.json", "x"), lambda: run.save_array("phases/a.npy", np.zeros(9))):
        with monkeypatch.context() as patch:
            patch.setattr(os, during, full)
            with pytest.raises(
                RunError, match=r"cannot be written \(No space left on device\); make room there and resume"
            ):
                write()
    assert sorted(run.path.rglob("*")) == before
    assert RunDirectory(run.path).done("probe") is not None


def test_what_a_killed_process_left_half_written_is_removed_when_the_run_goes_on(run):
    (run.path / "checkpoints" / ".step-00000003.partial").mkdir(parents=True)
    (run.path / "phases" / ".adapt.json.partial").write_text("{")
    with working(run, Silent()):
        assert list(run.path.rglob("*.partial")) == []


# ---- the log


def record(step: int, stage: str = "a") -> dict:
    return {"stage": stage, "step": step, "loss": 1 / step}


def test_a_line_that_was_half_written_is_dropped_and_one_that_is_damaged_is_named(tmp_path):
    log = EventLog(tmp_path / "events.jsonl", candidate="full")
    log.write([record(1), record(2), record(3)])
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-9])
    log.rewind(0, 3)
    assert log.path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    log.path.write_bytes(whole.replace(b'"step": 2', b'"step\xff 2'))
    with pytest.raises(RunError, match=r"events\.jsonl: line 2 is damaged; take it out to go on"):
        log.rewind(0, 3)


def test_cutting_the_log_back_leaves_the_lines_of_others_and_of_earlier_stages(tmp_path):
    ours, others = (EventLog(tmp_path / "events.jsonl", candidate=name) for name in ("ours", "others"))
    ours.write([record(1), record(2)])
    others.write([record(5)])
    ours.write([record(1, "b"), record(2, "b"), {"stage": "b", "step": 2, "note": "decided"}, record(3, "b")])
    ours.rewind(1, 1)
    lines = [json.loads(line) for line in ours.path.read_text().splitlines()]
    assert [(line["candidate"], line["stage"], line["step"]) for line in lines] == [
        ("ours", "a", 1), ("ours", "a", 2), ("others", "a", 5), ("ours", "b", 1),
    ]  # fmt: skip


# ---- the lock


def holding(run: RunDirectory, then) -> Forked:
    """A process that works on the run; when it has begun, it writes a file and goes on with `then`."""

    def work():
        with working(run, Silent()):
            (run.path / "begun").write_text("")
            then()

    process = Forked(work)
    while not (run.path / "begun").exists():
        pass
    return process


def test_a_second_process_is_told_who_works_there_until_the_first_is_gone_however_it_ended(run):
    process = holding(run, signal.pause)
    name = os.uname().nodename
    with pytest.raises(RunError) as error, working(run, Silent()):
        pass
    assert str(error.value) == (
        f"{run.path}: process {process.pid} on host {name} is working on this run; wait until it ends, or stop it"
    )
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with working(run, Silent()):
        assert json.loads((run.path / ".lock").read_text())["process"] == os.getpid()


def test_the_children_of_a_killed_process_hold_no_lock_for_it(run):
    """A worker that outlives its parent, as after kill -9."""

    def with_child():
        child = os.fork()
        if child == 0:
            os.close(1)
            signal.pause()
        (run.path / "child").write_text(str(child))
        signal.pause()

    process = holding(run, with_child)
    while not (run.path / "child").exists() or not (run.path / "child").read_text():
        pass
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)
    child = int((run.path / "child").read_text())
    os.kill(child, 0)  # it lives
    try:
        with working(run, Silent()):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_of_two_that_begin_a_run_in_one_folder_the_second_is_refused(tmp_path):
    made = RunDirectory.create(tmp_path / "run")
    second = RunDirectory(tmp_path / "run")  # made in the instant before the first had written anything
    with working(made, Silent(), fresh=True):
        made.write_text(RECIPE, "seed: 0")
    with pytest.raises(RunError, match="another process has begun a run there"), working(second, Silent(), fresh=True):
        pass


def test_a_lock_nobody_has_written_to_yet_names_nobody(run):
    import fcntl

    with Path(run.path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process is working on this run"), working(run, Silent()):
            pass


def test_what_hooks_noted_is_read_back_once_and_for_its_candidate_alone(tmp_path):
    logs = {name: EventLog(tmp_path / "events.jsonl", candidate=name) for name in ("full", "lora")}
    assert logs["full"].notes() == []
    logs["full"].write([{"stage": "a", "step": 1, "loss": 0.5}, {"stage": "a", "step": 2, "note": "batches are cut"}])
    logs["lora"].write([{"stage": "a", "step": 2, "note": "a step was skipped"}])
    logs["full"].write([{"stage": "b", "step": 1, "note": "batches are cut"}])
    assert logs["full"].notes() == ["batches are cut"]
    assert logs["lora"].notes() == ["a step was skipped"]
