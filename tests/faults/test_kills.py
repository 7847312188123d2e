"""SIGKILL at uniformly random instants, with a checkpoint at every step: each run resumes by itself and ends with the same bits.

The training is small and its checkpoint large, so that most of the time something is being written. A second process does
what whoever started the first would do, with no look at what it left: resume where there is a run, start where there is none.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from faults.disk_injectors import failing
from faults.injectors import Reporter
from faults.lab import DIED, Counter, Forked, file_hash, forked, record, state_hash

from regraft.config.data import DataSpec
from regraft.config.recipe import MAIN, ModelSpec, RaceSpec, RecipeSpec, recipe_from_tree
from regraft.core.checkpoint import Checkpointer
from regraft.core.train import Run
from regraft.errors import RegraftError
from regraft.phases import finish, train
from regraft.phases.path import job_recipe, plan_job, resume_job, run_job
from regraft.phases.rundir import RECIPE
from regraft.phases.train import is_training_run, resume_training, train_job

STEPS = 8
TREE = {
    "data": {MAIN: {"path": "wine", "limit": 96}},
    "models": {MAIN: {"network": {"MLP": {"width": 256, "depth": 2, "dropout": 0.1}}}},
    "train": {"batch_size": 16},
    "stages": [{"name": "earlier", "steps": STEPS // 2}, {"name": "later", "steps": STEPS // 2}],
    "techniques": [{"WeightAverage": {"decay": 0.9}}],
    "checkpoint": {"every_steps": 1},
    "validate": {"times": 1},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the page, which has tests of its own."""
    monkeypatch.setattr(train, "write_report", lambda run: run)
    monkeypatch.setattr(finish, "write_report", lambda run: run)


@dataclass
class Life:
    """What is seen from outside of a process that trains."""

    done: Counter  # steps whose hooks have all run, over all stages
    begun: Counter  # step that a process went on from
    first: Counter  # when the first phase that is to be hit began, in nanoseconds of the machine's clock,
    last: Counter  # and when the phase after the last one did

    @classmethod
    def new(cls) -> Life:
        return cls(*(Counter() for _ in range(4)))

    def watch(self) -> None:
        """Tell the parent of every step that is made in this process."""
        original = Checkpointer.on_step

        @wraps(original)
        def on_step(hook: Checkpointer, run: Run, loss: Any) -> None:
            original(hook, run, loss)
            self.done.set(sum(stage.steps for stage in run.recipe.stages[: run.index]) + run.clock.step)

        Checkpointer.on_step = on_step  # type: ignore[method-assign]

    def heard(self, sentence: str) -> None:
        """Keep the step that a resumed process says it goes on from."""
        if sentence.startswith("continuing from step-"):
            self.begun.set(int(sentence.removeprefix("continuing from step-")))


class Told(Reporter):
    """Hands sentences on as they are said, and notes when the phases to be hit begin and end."""

    def __init__(self, life: Life, first: str, after: str) -> None:
        super().__init__()
        self.life, self.first, self.after = life, first, after

    def phase(self, name: str, what: str, /) -> None:
        super().phase(name, what)
        for phase, counter in ((self.first, self.life.first), (self.after, self.life.last)):
            if name == phase:
                counter.set(time.monotonic_ns())

    def say(self, sentence: str, /) -> None:
        self.life.heard(sentence)


Work = Callable[[Path, Life], Any]


def training(folder: Path, life: Life) -> dict[str, str]:
    """`regraft train`, or `regraft resume` where there is a run."""
    life.watch()
    told = Told(life, "train", "evaluate")
    if is_training_run(folder):
        resume_training(folder, reporter=told)
    else:
        train_job(recipe_from_tree(TREE), folder, reporter=told)
    return hashes(folder)


def hashes(folder: Path) -> dict[str, str]:
    names = ("phases/final.safetensors", "events.jsonl", "phases/evaluate.json", "model/model.safetensors")
    return {name: file_hash(folder / name) for name in names if (folder / name).exists()}


@dataclass
class Score:
    """Kills and what became of them."""

    kills: int = 0
    early: int = 0  # before there was a run to resume
    writing: int = 0  # while a checkpoint was being written
    trained: int = 0  # after training was over
    most_lost: int = 0  # steps
    failed: list[str] | None = None


def kill_many(work: Work, folder: Path, *, runs: int, seed: int) -> Score:
    """Kill each run once or twice at a uniformly random instant, then let it go on to its end.

    The instants lie in the phases to be hit; those of every tenth run, and the second of a run, lie anywhere in a life.
    `failed` has a sentence for each run that did not end by itself or ended with other bits.
    """
    draw, score = random.Random(seed), Score(failed=[])
    whole, lifetime, window = undisturbed(work, folder)
    for number in range(runs):
        place, life, before = folder / f"run-{number}", Life.new(), 0
        for again in range(1 + (number % 5 == 0)):
            anywhere = bool(again) or number % 10 == 9
            process = Forked(lambda place=place, life=life: work(place, life))
            if not anywhere:
                while not life.first.value and process.lives():
                    time.sleep(0.001)
            process.kill_after(draw.uniform(0, lifetime if anywhere else window))
            ended = process.wait()
            if ended.code >= 0:  # it was done before the kill, or failed
                if ended.code > 0:
                    score.failed.append(f"run {number} could not go on: {ended.error}")
                break
            looked_at(place, score)
            before = life.done.value
            life.begun.set(0)
        trained = (place / "phases" / "train.json").exists() or (place / "phases" / "adapt.json").exists()
        ended = Forked(lambda place=place, life=life: work(place, life)).wait()
        if ended.code != 0:
            score.failed.append(f"run {number} could not go on: {ended.error or ended.code}")
        elif ended.value != whole:
            different = [name for name in whole if ended.value.get(name) != whole[name]]
            score.failed.append(f"run {number} ended with other bits: {different}")
        elif not trained:
            score.most_lost = max(score.most_lost, before - life.begun.value)
        shutil.rmtree(place, ignore_errors=True)
    return score


def undisturbed(work: Work, folder: Path) -> tuple[dict[str, str], float, float]:
    """What a run comes to that nothing happens to, the seconds of its life and of the phases to be hit: medians of three."""
    seconds: list[float] = []
    windows: list[float] = []
    for number in range(3):
        begin, life = time.perf_counter(), Life.new()
        found = forked(lambda number=number, life=life: work(folder / f"whole-{number}", life)).result()
        seconds.append(time.perf_counter() - begin)
        windows.append((life.last.value - life.first.value) / 1e9)
    return found, sorted(seconds)[1], max(0.0, sorted(windows)[1])


def looked_at(place: Path, score: Score) -> None:
    """Count a kill by what it hit."""
    score.kills += 1
    checkpoints = place / "checkpoints"
    score.early += not (place / RECIPE).exists()
    score.writing += checkpoints.is_dir() and any(path.name.startswith(".") for path in checkpoints.iterdir())
    score.trained += (place / "phases" / "train.json").exists() or (place / "phases" / "adapt.json").exists()


def counts(score: Score, runs: int) -> dict[str, int]:
    assert score.failed is not None
    return {
        "runs": runs, "kills": score.kills, "ended by themselves with the same bits": runs - len(score.failed),
        "kills before there was a run": score.early, "kills while a checkpoint was written": score.writing,
        "kills after training": score.trained, "most steps lost": score.most_lost,
    }  # fmt: skip


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Everything that a run imports is imported before the first fork."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "write_report", lambda run: run)
        train_job(recipe_from_tree(TREE), tmp_path_factory.mktemp("warm") / "run")


@pytest.mark.usefixtures("warm")
def test_a_training_that_is_killed_at_a_random_instant_goes_on_by_itself_to_the_same_bits(scratch):
    score = kill_many(training, scratch, runs=8, seed=1)
    assert score.failed == []
    assert score.most_lost <= 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("warm")
def test_five_hundred_kills_of_a_training_lose_at_most_a_step(scratch):
    score = kill_many(training, scratch, runs=500, seed=2)
    record("kills of a training", counts(score, 500))
    assert score.failed == []
    assert score.most_lost <= 1
    assert score.kills >= 480
    assert score.writing >= 100


# ---- the main job


@pytest.fixture(scope="module")
def planned() -> RecipeSpec:
    """A plan for the diabetes table with a short training, saved at every step."""
    plan = plan_job(job_recipe(DataSpec(path="diabetes"), ModelSpec(), budget="600s", strategy="full"))
    assert plan.race is not None
    probe, full = plan.race.candidates
    race: RaceSpec = plan.race.replaced(candidates=(probe, full.replaced(steps=12)))
    return plan.replaced(race=race, checkpoint=plan.checkpoint.replaced(every_steps=1))


def adapting(spec: RecipeSpec) -> Work:
    """`regraft adapt`, or `regraft resume` where there is a run."""

    def work(folder: Path, life: Life) -> dict[str, str]:
        told = Told(life, "probe", "report")
        if (folder / RECIPE).exists():
            resume_job(folder, reporter=told)
        else:
            run_job(spec, folder, reporter=told)
        return hashes(folder)

    return work


def test_a_job_that_is_killed_at_a_random_instant_goes_on_by_itself_to_the_same_bits(planned, scratch):
    assert kill_many(adapting(planned), scratch, runs=4, seed=3).failed == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_kills_of_the_main_job_in_any_phase(planned, scratch):
    score = kill_many(adapting(planned), scratch, runs=100, seed=4)
    record("kills of the main job", counts(score, 100))
    assert score.failed == []


def deaths(work: Work, folder: Path, *, most: int | None = None) -> int:
    """How many runs died before a file or folder got its name, each at another; the next life of each ends with the same bits.

    `most` limits it to the first ones.
    """

    def undisturbed() -> tuple[Any, list[str]]:
        with failing(folder / "whole", at=None, do=lambda name: None) as disk:
            found = work(folder / "whole", Life.new())
        return found, disk.calls

    def dying(place: Path, at: int) -> Any:
        with failing(place, at=at, do=lambda name: os._exit(DIED)):
            return work(place, Life.new())

    whole, calls = forked(undisturbed).result()
    names = [at for at, call in enumerate(calls) if call == "rename"]
    for at in names[:most]:
        place = folder / f"before-{at}"
        first = forked(lambda place=place, at=at: dying(place, at))
        assert first.code == DIED, first.error
        assert forked(lambda place=place: work(place, Life.new())).result() == whole, f"before call {at}"
        shutil.rmtree(place)
    return len(names[:most])


def test_a_job_that_dies_between_any_two_of_its_first_files_goes_on(planned, scratch):
    assert deaths(adapting(planned), scratch, most=6) == 6


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_that_dies_between_any_two_of_its_files_goes_on(planned, scratch):
    died = deaths(adapting(planned), scratch)
    record("deaths of the main job between two files", {"runs": died})
    assert died >= 40


@pytest.mark.usefixtures("warm")
def test_a_training_that_dies_between_any_two_of_its_first_files_goes_on(scratch):
    assert deaths(training, scratch, most=6) == 6


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_training_that_dies_between_any_two_of_its_files_goes_on(scratch):
    died = deaths(training, scratch)
    record("deaths of a training between two files", {"runs": died})
    assert died >= 15


def test_a_failure_is_not_taken_for_an_end(scratch):
    def broken(folder: Path, life: Life) -> dict[str, str]:
        if (folder / "begun").exists():
            raise RegraftError("cannot go on")
        folder.mkdir(exist_ok=True)
        if not folder.name.startswith("whole"):
            (folder / "begun").touch()
        time.sleep(0.05)
        return {"bits": state_hash(1)}

    score = kill_many(broken, scratch, runs=3, seed=5)
    assert len(score.failed or []) >= 3
    assert all("cannot go on" in sentence for sentence in score.failed or [])
