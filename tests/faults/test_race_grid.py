"""The main job, interrupted in its race, in the winner's training or between phases, ends with the bits it would have had."""

from __future__ import annotations

import json
from collections import Counter as Tally
from pathlib import Path
from typing import Any

import pytest
from faults.injectors import How, Point, Reporter, strike
from faults.lab import DIED, RAISED, file_hash, forked, record, state_hash

from regraft.config.data import DataSpec
from regraft.config.parse import parse_one
from regraft.config.recipe import CandidateSpec, ModelSpec, RaceSpec, RecipeSpec, TrainSpec
from regraft.phases import finish
from regraft.phases.path import job_recipe, plan_job, resume_job, run_job

STEPS, RUNGS = 20, (5, 10)
RACES: dict[
    str, tuple[tuple[Any, ...], ...]
] = {  # the techniques of each candidate; full training is always one of them
    "SAM, thaw": (({"SAM": {"rho": 0.05}},), ({"StagedThaw": {"shares": [0.5, 0.5]}},)),
    "LoRA, average": (({"LoRA": {"rank": 2}},), ({"WeightAverage": {"decay": 0.9}},)),
    "MixUp, ahead": (({"MixUp": {"alpha": 0.4}}, "Prefetch"), ("Prefetch",)),
    "store, adaptive": (({"LastK": {"blocks": 1}}, "CachePrefix"), ({"AdaptiveBackprop": {"rho": 0.5, "weigh": 0.4}},)),
}
WHERE = {
    "mid-epoch of a rung": Point("step", 10, "race"),
    "mid-accumulation of a rung": Point("slice", 5, "race"),
    "inside an evaluation of the race": Point("measure", 1, "race"),
    "mid-epoch": Point("step", 5, "adapt"),
    "mid-accumulation": Point("slice", 5, "adapt"),
    "inside an evaluation": Point("measure", 0, "adapt"),
    **{f"before {phase}": Point("phase", phase=phase) for phase in ("probe", "race", "adapt", "calibrate", "evaluate", "report")},
}  # fmt: skip
CASES = [(race, where) for race in RACES for where in WHERE]


@pytest.fixture(scope="module")
def planned() -> RecipeSpec:
    """What the plan of a small table comes to, before its candidates are replaced."""
    return plan_job(job_recipe(DataSpec(path="wine"), ModelSpec(), budget="600s"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the page, which has tests of its own."""
    monkeypatch.setattr(finish, "write_report", lambda run: run)


def with_race(planned: RecipeSpec, race: str, every: int = 3) -> RecipeSpec:
    """The main job with some candidates, each for 20 steps in two slices of a batch."""
    train = TrainSpec(batch_size=32, micro=2)
    lists = ((), *RACES[race])
    candidates = tuple(
        CandidateSpec(
            name=f"arm{i}", steps=STEPS, techniques=tuple(parse_one(t, "technique") for t in each), train=train
        )
        for i, each in enumerate(lists)
    )
    probe = CandidateSpec(name="probe", steps=0)
    made = planned.replaced(race=RaceSpec(candidates=(probe, *candidates), rungs=RUNGS))
    return made.replaced(checkpoint=made.checkpoint.replaced(every_steps=every))


def finished(run: Path) -> dict[str, str]:
    """Hashes of what the job came to."""
    metrics = json.loads((run / "metrics.json").read_text())
    found = {
        "weights": file_hash(run / "phases" / "final.safetensors"),
        "log": file_hash(run / "events.jsonl"),
        "metrics": state_hash({name: metrics[name] for name in ("final", "probe", "winner")}),
        "candidates": state_hash([{**entry, "seconds": 0, "flops": 0} for entry in metrics["candidates"]]),
    }
    for name in ("final_valid.npy", "calibrate.json"):
        found[name] = file_hash(run / "phases" / name)
    return found


def whole_run(made: RecipeSpec, folder: Path) -> dict[str, str]:
    return forked(lambda: finished(run_job(made, folder).path)).result()


def check(made: RecipeSpec, folder: Path, point: Point, how: How, whole: dict[str, str]) -> list[str]:
    """Names of what differs from the job that nothing happened to."""
    died = forked(lambda: run_job(made, folder, reporter=strike(point, how)).path.name)
    assert died.code == {"exit": DIED, "raise": RAISED}[how], f"it did not end at {point}: {died}"
    ours = forked(lambda: finished(resume_job(folder, reporter=Reporter()).path)).result()
    return [name for name in whole if ours[name] != whole[name]]


def how_of(number: int) -> How:
    return ("raise", "exit")[number % 2]


@pytest.mark.parametrize(("race", "where"), CASES[::13])
def test_a_job_that_was_interrupted_ends_with_the_bits_it_would_have_had(planned, race, where, scratch):
    made = with_race(planned, race)
    whole = whole_run(made, scratch / "whole")
    assert check(made, scratch / "run", WHERE[where], how_of(CASES.index((race, where)) // 13), whole) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_interrupted_job_ends_with_the_bits_it_would_have_had(planned, scratch):
    tried, equal, wrong = Tally[str](), Tally[str](), []
    for race in RACES:
        folder = scratch / race.replace(" ", "-")
        folder.mkdir()
        whole = whole_run(with_race(planned, race), folder / "whole")
        for number, (where, point) in enumerate(WHERE.items()):
            for how in (how_of(number), how_of(number + 1)):
                made = with_race(planned, race, every=1 + number % 3)
                different = check(made, folder / f"{number}-{how}", point, how, whole)
                tried[where] += 1
                equal[where] += not different
                wrong += [f"{race}, {where}, {how}: {', '.join(different)} differ"] * bool(different)
    counts = {"interrupted": tried.total(), "equal": equal.total()}
    record("resume of the main job", counts | {"by where": {name: [equal[name], tried[name]] for name in tried}})
    assert wrong == []
