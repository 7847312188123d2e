"""R3: whatever happens to a file of a checkpoint is noticed before a tensor of it is used, and an older one is gone on from."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.disk_injectors import DAMAGE, restore
from faults.lab import file_hash, record, state_hash

from regraft.config.recipe import RecipeSpec, recipe_from_tree
from regraft.core import snapshot
from regraft.core.checkpoint import find_newest, load
from regraft.phases import train
from regraft.phases.progress import Silent
from regraft.phases.train import resume_training, train_job

SAMPLE = 0.05  # of the injections, in the default suite


class Killed(BaseException):
    """Stands for the end of the process."""


class Reporter(Silent):
    """Ends the process at a step, and hears what is said."""

    def __init__(self, step: int | None = None) -> None:
        self.left, self.sentences = step, []

    def advance(self, done: int, note: str = "", /) -> None:
        if self.left is not None:
            self.left -= done
            if self.left <= 0:
                raise Killed

    def say(self, sentence: str, /) -> None:
        self.sentences.append(sentence)


def recipe() -> RecipeSpec:
    return recipe_from_tree(
        {
            "data": {"main": {"path": "wine"}},
            "models": {"main": {"network": {"MLP": {"width": 16, "depth": 1, "dropout": 0.1}}}},
            "train": {"batch_size": 16, "optimizer": {"AdamW": {"lr": 3e-3}}},
            "stages": [{"name": "train", "steps": 12}],
            "checkpoint": {"every_steps": 2, "keep_last": 3},
            "validate": {"times": 2},
        }
    )


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Iterator[tuple[Path, Path]]:
    """(a run that ended in the middle of its training, the same run uninterrupted)."""
    base = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "write_report", lambda run: run)
        whole = train_job(recipe(), base / "whole").path
        with pytest.raises(Killed):
            train_job(recipe(), base / "stopped", reporter=Reporter(11))
        yield base / "stopped", whole


def injected(stopped: Path, place: Path, kind: str, share: float) -> dict[str, int]:
    """How many injections of a kind there were, how many were noticed before use, and how many ended at an older one."""
    total, damage = DAMAGE[kind]
    counts = dict.fromkeys(("injected", "noticed", "recovered"), 0)
    folder, kept = place / "checkpoints", stopped / "checkpoints"
    shutil.copytree(kept, folder)
    sound = {path.name: state_hash(load(path)) for path in sorted(folder.iterdir())}
    used: list[Path] = []
    chosen = random.Random(kind)
    with pytest.MonkeyPatch.context() as patch:
        read = snapshot.load_file
        patch.setattr(snapshot, "load_file", lambda file: used.append(Path(file)) or read(file))
        for _ in range(round(share * total)):
            used.clear()
            touched = damage(chosen, sorted(folder.iterdir()))
            found, damaged = find_newest(folder)
            counts["injected"] += 1
            newest = max(sound)
            named = any(newest in sentence and file.name in sentence for sentence in damaged for file in touched)
            counts["noticed"] += named and not any(newest in str(path) for path in used)
            counts["recovered"] += (
                found is not None and found[1].name < newest and state_hash(found[0]) == sound[found[1].name]
            )
            restore(folder, kept)
    return counts


def check(stopped: Path, place: Path, share: float, family: str) -> None:
    counts = {kind: injected(stopped, place / kind, kind, share) for kind in DAMAGE}
    record(family, counts)
    for kind, found in counts.items():
        assert found["noticed"] == found["recovered"] == found["injected"] > 0, (kind, found)


def test_a_sample_of_all_damage_to_a_checkpoint_is_noticed_and_recovered_from(stopped, tmp_path):
    check(stopped[0], tmp_path, SAMPLE, "R3, sample")


@pytest.mark.slow
def test_all_damage_to_a_checkpoint_is_noticed_and_recovered_from(stopped, tmp_path):
    check(stopped[0], tmp_path, 1.0, "R3")


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_run_with_a_damaged_checkpoint_ends_with_the_bits_of_an_undamaged_one(stopped, tmp_path, kind):
    run, whole = shutil.copytree(stopped[0], tmp_path / "run"), stopped[1]
    newest = sorted((run / "checkpoints").iterdir())[-1]
    DAMAGE[kind][1](random.Random(3), sorted((run / "checkpoints").iterdir()))
    heard = Reporter()
    resume_training(run, reporter=heard)
    assert any(sentence.startswith("passed over: ") and newest.name in sentence for sentence in heard.sentences)
    for name in ("phases/final.safetensors", "events.jsonl", "phases/train.json"):
        assert file_hash(run / name) == file_hash(whole / name), name


def test_with_every_checkpoint_damaged_the_training_starts_over_and_says_so(stopped, tmp_path):
    run, whole = shutil.copytree(stopped[0], tmp_path / "run"), stopped[1]
    for path in (run / "checkpoints").iterdir():
        (path / "state.json").write_text("")
    heard = Reporter()
    resume_training(run, reporter=heard)
    assert sum(sentence.startswith("passed over: ") for sentence in heard.sentences) == 3
    assert "no checkpoint is sound; the training starts over, to the bits it had" in heard.sentences
    for name in ("phases/final.safetensors", "events.jsonl"):
        assert file_hash(run / name) == file_hash(whole / name), name
