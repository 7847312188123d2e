"""R4: a disk that is full, fails or is read-only, and a process that dies, at every system call of a save: nothing is lost."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from faults.disk_injectors import failing, raising
from faults.lab import DIED, file_hash, forked, record, state_hash
from faults.test_checkpoint_faults import Killed, Reporter, recipe

from regraft.core import snapshot
from regraft.core.checkpoint import find_newest, load
from regraft.errors import RunError
from regraft.phases import train
from regraft.phases.path import resume_job
from regraft.phases.rundir import RunDirectory
from regraft.phases.train import resume_training, train_job

FAULTS = {  # (error number or None for the death of the process, does half of a write reach the disk)
    "no space": (errno.ENOSPC, False),
    "no space within a write": (errno.ENOSPC, True),
    "input/output error": (errno.EIO, False),
    "read-only": (errno.EROFS, False),
    "death": (None, False),
    "death within a write": (None, True),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Iterator[Path]:
    """The run that nothing happens to; pages are left out, they have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "write_report", lambda run: run)
        yield train_job(recipe(), tmp_path_factory.mktemp("whole") / "run").path


def begun(out: Path) -> None:
    """A run that was stopped after its second checkpoint."""
    with pytest.raises(Killed):
        train_job(recipe(), out, reporter=Reporter(5))


def calls_of_a_save(place: Path) -> int:
    """System calls until a checkpoint has its name and is durable."""
    state = load(find_newest(place)[0][1])  # type: ignore[index]
    with failing(place, at=None, do=raising(errno.EIO)) as disk:
        snapshot.save(place / "step-00000099", state)
    shutil.rmtree(place / "step-00000099")
    return len(disk.calls)


def survives(stopped: Path, out: Path, whole: Path, fault: str, at: int) -> bool:
    """A fault at a call of the next save: is the old checkpoint intact, and does the run end with its bits after a resume?"""
    shutil.copytree(stopped, out)
    folder, (number, half) = out / "checkpoints", FAULTS[fault]
    old = {path.name: state_hash(load(path)) for path in folder.iterdir()}
    if number is None:
        ended = forked(lambda: _resumed(out, at, lambda name: os._exit(DIED), half))
        assert ended.code == DIED, ended.error
    else:
        with pytest.raises(RunError, match="make room and resume"):
            _resumed(out, at, raising(number), half)
    intact = all(state_hash(load(folder / name)) == expected for name, expected in old.items())
    heard = Reporter()
    resume_training(out, reporter=heard)
    same = all(
        file_hash(out / name) == file_hash(whole / name) for name in ("phases/final.safetensors", "events.jsonl")
    )
    clean = not list(out.rglob("*.partial")) and not any(s.startswith("passed over") for s in heard.sentences)
    shutil.rmtree(out)
    return intact and same and clean


def _resumed(out: Path, at: int, do, half: bool) -> None:
    with failing(out / "checkpoints", at=at, do=do, half=half):
        resume_training(out)


def check(tmp_path: Path, whole: Path, family: str, every: int) -> None:
    """`every` n-th call of a save, for every fault."""
    begun(tmp_path / "stopped")
    calls = calls_of_a_save(tmp_path / "stopped" / "checkpoints")
    counts: dict[str, dict[str, int]] = {}
    for place, fault in enumerate(FAULTS):
        points = range(place % every, calls, every)
        survived = [survives(tmp_path / "stopped", tmp_path / f"run-{fault}-{at}", whole, fault, at) for at in points]
        counts[fault] = {"points": len(points), "intact and resumed to the same bits": sum(survived)}
    record(family, counts)
    assert all(len(set(found.values())) == 1 for found in counts.values()), counts
    if every == 1:
        assert sum(found["points"] for found in counts.values()) >= 100


def test_at_a_sample_of_all_calls_of_a_save_a_fault_loses_nothing(tmp_path, whole):
    check(tmp_path, whole, "R4, sample", every=30)


@pytest.mark.slow
def test_at_every_call_of_a_save_a_fault_loses_nothing(tmp_path, whole):
    check(tmp_path, whole, "R4", every=1)


def test_the_sentence_of_a_full_disk_says_where_and_how_much_is_free(tmp_path, whole):
    begun(tmp_path / "run")
    with pytest.raises(RunError) as error:
        _resumed(tmp_path / "run", 2, raising(errno.ENOSPC), half=False)
    message = str(error.value)
    assert message.startswith(str(tmp_path / "run" / "checkpoints" / "step-00000006"))
    assert "could not be written (No space left on device); " in message
    assert message.endswith(" GB are free there, make room and resume")


def test_a_limit_on_the_size_of_files_ends_the_run_with_a_sentence_and_the_old_checkpoint(tmp_path, whole):
    """Set by an administrator (ulimit -f); the same error as a disk quota."""
    begun(tmp_path / "run")
    newest = find_newest(tmp_path / "run" / "checkpoints")[0][1]  # type: ignore[index]
    size = (newest / "state.safetensors").stat().st_size

    def limited() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 10, size - 10))
        with pytest.raises(RunError) as error:
            resume_training(tmp_path / "run")
        return str(error.value)

    assert "could not be written (File too large)" in forked(limited).result()
    assert find_newest(tmp_path / "run" / "checkpoints")[1] == []
    resume_training(tmp_path / "run")
    assert file_hash(tmp_path / "run/phases/final.safetensors") == file_hash(whole / "phases/final.safetensors")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 400 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(place)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here, so that none is full or read-only")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_on_a_disk_that_is_too_small_the_run_says_so_before_its_first_step(small_disk):
    heard = Reporter()
    (small_disk / "ballast").write_bytes(bytes(320_000))
    with pytest.raises(
        RunError, match=r"4 checkpoints of [\d.]+ kB need [\d.]+ kB, but [\d.]+ kB are free there; make room"
    ):
        train_job(recipe(), small_disk / "run", reporter=heard)
    assert not (small_disk / "run" / "events.jsonl").exists()
    assert list((small_disk / "run").rglob("step-*")) == []


def test_a_disk_that_fills_up_ends_the_run_which_goes_on_when_there_is_room(small_disk, whole):
    out, ballast = small_disk / "run", small_disk / "ballast"

    def fill(step: int) -> None:
        with ballast.open("ab", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(512))
                except OSError:
                    return

    class Filling(Reporter):
        """Writes the disk full after some steps."""

        def advance(self, done: int, note: str = "", /) -> None:
            self.left = (self.left or 0) + done
            if self.left == 5:
                fill(5)

    with pytest.raises(RunError, match=r"(could not|cannot) be written|disk failed"):
        train_job(recipe(), out, reporter=Filling())
    ballast.unlink()
    resume_training(out)
    for name in ("phases/final.safetensors", "events.jsonl"):
        assert file_hash(out / name) == file_hash(whole / name), name


def test_a_read_only_disk_is_told_as_a_sentence_before_anything_is_done(small_disk, whole):
    out = small_disk / "run"
    out.mkdir()
    shutil.copy(whole / "recipe.yaml", out)
    shutil.copy(whole / "manifest.json", out)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for work in (lambda: resume_training(out), lambda: resume_job(out)):
        with pytest.raises(
            RunError, match=r"\.lock: cannot be written \(Read-only file system\); a run needs a folder"
        ):
            work()


@pytest.mark.parametrize(
    "name", ["phases/final_valid.npy", "phases/start.json", "phases/final.safetensors", "metrics.json"]
)
def test_a_fault_while_a_phase_leaves_its_files_is_a_sentence_and_the_run_goes_on(tmp_path, whole, name):
    """Every file of a phase: what it is written to beside its name cannot be given the name."""
    out = tmp_path / "run"
    with failing(out, at=None, do=raising(errno.EIO)) as disk:
        real = disk.rename

        def rename(source, target, **options) -> None:
            if str(target).endswith(name):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(source, target, **options)

        os.rename = rename
        with pytest.raises(RunError, match=r"cannot be written \(Input/output error\); make room there and resume"):
            train_job(recipe(), out)
    resume_training(out)
    for each in ("phases/final.safetensors", "events.jsonl"):
        assert file_hash(out / each) == file_hash(whole / each), each


def test_arrays_of_a_phase_are_there_whole_or_not_at_all(tmp_path):
    run = RunDirectory.create(tmp_path / "run")
    run.save_array("phases/a.npy", np.arange(3))
    with failing(run.path, at=1, do=raising(errno.ENOSPC)), pytest.raises(RunError, match="No space left"):
        run.save_array("phases/a.npy", np.arange(9))
    assert np.load(run.path / "phases" / "a.npy").tolist() == [0, 1, 2]
