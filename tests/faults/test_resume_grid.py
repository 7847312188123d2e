"""A run that is interrupted anywhere ends with the bits of one that is not: weights, optimizer, validations and metrics log.

The grid is generated: {where} x {technique, optimizer} x {source of randomness} x {batches made ahead or not}. Each case runs
in forked processes: one that dies at an exact point, by an error or by `os._exit`, and one that resumes as `regraft resume` does.
"""

from __future__ import annotations

import json
from collections import Counter as Tally
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from faults.injectors import How, Point, Reporter, strike, watch_states
from faults.lab import DIED, RAISED, file_hash, forked, record, state_hash
from faults.recipes import STEPS, VARIANTS, grid

from regraft.config.recipe import RecipeSpec
from regraft.phases import train
from regraft.phases.train import resume_training, train_job

GRID = grid()
WHERE: dict[str, tuple[tuple[Point, int], ...]] = {  # -> a point, and the steps between two checkpoints; taken in turn
    "mid-epoch": ((Point("step", 5), 1), (Point("step", STEPS + 4), 2)),
    "epoch end": (
        (Point("step", 4), 3),
        (Point("step", STEPS + 4), 3),
    ),  # the newest checkpoint stands at an epoch's end
    "mid-accumulation": ((Point("slice", 4), 2), (Point("slice", STEPS + 3), 1)),
    "inside an evaluation": ((Point("evaluation", 0), 3), (Point("evaluation", 1), 2)),
    "between stages": ((Point("stage", 1), 2), (Point("stage", 1), 1)),
    "between phases": ((Point("phase", phase="evaluate"), 3), (Point("phase", phase="save"), 1)),
}
CASES = [
    (recipe, where)
    for recipe in GRID
    for where in WHERE
    if where != "inside an evaluation" or VARIANTS[recipe.split(" / ")[0]].judged
]


def finished(run: Path, states: list[Callable[[], Any]]) -> dict[str, str]:
    """Hashes of all that a run came to; of its state at the end where this process trained."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    found = {
        "weights": file_hash(run / "phases" / "final.safetensors"),
        "log": state_hash([event for event in events if "note" not in event]),
        "model folder": state_hash({p.name: file_hash(p) for p in (run / "model").iterdir() if p.suffix != ".md"}),
    }
    for phase in ("start", "train", "evaluate"):
        notes = json.loads((run / "phases" / f"{phase}.json").read_text())
        found[phase] = state_hash({key: value for key, value in notes.items() if key != "notes"})
    if states:
        end = states[-1]()
        assert {"model", "objective", "source", "updates", "hooks", "step"} <= end.keys()
        found |= {f"state {name}": state_hash(value) for name, value in end.items() if name != "history"}
    return found


def uninterrupted(made: RecipeSpec, folder: Path) -> dict[str, str]:
    """What a process of its own gets when nothing happens to it."""

    def work() -> dict[str, str]:
        states: list[Callable[[], Any]] = []
        watch_states(states)
        return finished(train_job(made, folder, reporter=Reporter()).path, states)

    return forked(work).result()


def interrupted(made: RecipeSpec, folder: Path, point: Point, how: How) -> tuple[dict[str, str], list[str]]:
    """The same of a run that died and was resumed, and what the resumed run said."""
    died = forked(lambda: train_job(made, folder, reporter=strike(point, how)).path.name)
    assert died.code == {"exit": DIED, "raise": RAISED}[how], f"it did not end at {point}: {died}"
    assert how == "exit" or "Crash" in died.error.splitlines()[-1], died.error

    def work() -> Any:
        states: list[Callable[[], Any]] = []
        watch_states(states)
        reporter = Reporter()
        return finished(resume_training(folder, reporter=reporter).path, states), reporter.sentences

    return forked(work).result()


def differences(ours: dict[str, str], whole: dict[str, str]) -> list[str]:
    """Names of what is not equal; the state at the end is there only where the resumed process trained."""
    return [name for name in ours if ours[name] != whole[name]]


@cache
def how_of(recipe: str, where: str) -> tuple[Point, int, How]:
    """The point, the distance of checkpoints and the manner of a case: all of them come up for each place and technique."""
    number = list(GRID).index(recipe) + list(WHERE).index(where)
    point, every = WHERE[where][number // 2 % 2]
    return point, every, ("raise", "exit")[number % 2]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without the page, which has tests of its own; with a cache of this session."""
    monkeypatch.setattr(train, "write_report", lambda run: run)
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def check(recipe: str, where: str, tmp_path: Path, whole: dict[str, str]) -> tuple[list[str], bool]:
    """Names of what differs after an interruption, and whether the resumed run went on from a checkpoint."""
    point, every, how = how_of(recipe, where)
    ours, said = interrupted(GRID[recipe](every), tmp_path / where.replace(" ", "-"), point, how)
    return differences(ours, whole), any(sentence.startswith("continuing from step-") for sentence in said)


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Everything that a run imports is imported before the first fork."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "write_report", lambda run: run)
        for name in ("AdamW / augmentation / ahead", "AdamW / MixUp / in turn"):
            train_job(GRID[name](2), tmp_path_factory.mktemp("warm") / "run")


SAMPLE = [(recipe, list(WHERE)[number % len(WHERE)]) for number, recipe in enumerate(list(GRID)[::9])]


@pytest.mark.parametrize(("recipe", "where"), [case for case in SAMPLE if case in CASES])
def test_an_interrupted_run_ends_with_the_bits_of_one_that_was_not(recipe, where, scratch):
    whole = uninterrupted(GRID[recipe](1000), scratch / "whole")
    assert {"weights", "log", "evaluate", "state updates", "state hooks"} <= whole.keys()
    assert check(recipe, where, scratch, whole)[0] == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_interrupted_run_of_the_grid_ends_with_the_bits_of_one_that_was_not(scratch):
    equal: dict[str, Tally[str]] = {axis: Tally() for axis in ("where", "what", "noise", "batches", "how")}
    tried: dict[str, Tally[str]] = {axis: Tally() for axis in equal}
    wrong: list[str] = []
    continued = 0
    for number, recipe in enumerate(GRID):
        folder = scratch / str(number)
        folder.mkdir()
        whole = uninterrupted(GRID[recipe](1000), folder / "whole")
        for where in WHERE:
            if (recipe, where) not in CASES:
                continue
            different, from_checkpoint = check(recipe, where, folder, whole)
            continued += from_checkpoint
            what, noise, batches = recipe.split(" / ")
            axes = {"where": where, "what": what, "noise": noise, "batches": batches, "how": how_of(recipe, where)[2]}
            for axis, value in axes.items():
                tried[axis][value] += 1
                equal[axis][value] += not different
            wrong += [f"{recipe}, {where}: {', '.join(different)} differ"] * bool(different)
    by_axis = {axis: {value: [equal[axis][value], count] for value, count in tried[axis].items()} for axis in tried}
    counts = {"interrupted": len(CASES), "equal": len(CASES) - len(wrong), "from a checkpoint": continued}
    record("resume", counts | {"by axis": by_axis})
    assert len(CASES) >= 200
    assert wrong == []
    unsaved = tried["where"]["between phases"] + 0.05 * len(CASES)  # after training, or before anything was saved
    assert continued > len(CASES) - unsaved
