"""A candidate of a race is judged by, and ends with, the weights that its techniques make."""

from __future__ import annotations

import pytest
import torch
import toy

from regraft.config.recipe import CandidateSpec, RaceSpec, TrainSpec
from regraft.core import fit
from regraft.data.toys import Rows
from regraft.models.networks import MLP
from regraft.optim.optimizers import AdamW
from regraft.phases.choose.race import Entrant, Track, run_race
from regraft.phases.training import Valid, supervised_recipe
from regraft.techniques.regularise.l0_penalty import L0Penalty
from regraft.techniques.regularise.weight_average import WeightAverage
from regraft.techniques.transfer.last_k import LastK

STEPS = 80


class NoLog:
    def write(self, records):
        """Nobody reads it."""


def network():
    return MLP(width=16, depth=2).build((8,), 4, seed=0)


def rows():
    columns = toy.blobs(96)
    return Rows(columns["x"]), columns["y"]


def candidate(*techniques, name="one", steps=STEPS, lr=1e-2):
    train = TrainSpec(batch_size=32, optimizer=AdamW(lr=lr))
    return CandidateSpec(name=name, steps=steps, techniques=techniques, train=train, why="")


def made_track(log_for=lambda name: NoLog()):
    encoded, targets = rows()
    valid = Valid(encoded=encoded, targets=targets, task="multiclass")
    return Track(model=network(), encoded=encoded, targets=targets, valid=valid, task="multiclass", seed=0, validations=1,
                 patience=None, log_for=log_for)  # fmt: skip


def raced(technique):
    """The candidate's model after the race, and its result."""
    track = made_track()
    runner = track.runner(Entrant(candidate(technique)))
    result = runner.finish()
    model = runner.trainer.recipe.model
    assert track.valid.measure(model) == {
        "score": result["score"],
        "loss": result["loss"],
    }  # the weights it was judged by
    return model


def trained(technique):
    """The same candidate trained without a race."""
    return trained_on(network(), candidate(technique))


def trained_on(model, spec):
    """A model that a candidate's whole training has changed."""
    encoded, targets = rows()
    recipe = supervised_recipe(model, encoded, targets, task="multiclass", candidate=spec, seed=0)
    fit(recipe)
    return recipe.model


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    "technique", [WeightAverage(decay=0.95), L0Penalty(weight=0.01, speed=100)], ids=["average", "gates"]
)
def test_what_a_technique_makes_of_the_weights_at_the_end_survives_the_race(technique):
    assert same(raced(technique), trained(technique))


def test_a_race_keeps_the_zeros_of_closed_gates():
    model = raced(L0Penalty(weight=0.05, speed=100))
    assert any(bool((p == 0).all(1).any()) for p in model.parameters() if p.ndim == 2)


def test_a_rung_is_a_training_whose_schedule_ends_and_the_next_begins_with_its_weights():
    fast, slow = candidate(name="fast"), candidate(name="slow", lr=1e-5)
    labels = []
    track = made_track(lambda name: labels.append(name) or NoLog())
    runner, entries = run_race(RaceSpec(candidates=(slow, fast), rungs=(20,)), track, say=lambda sentence: None)
    assert [(each["name"], each["steps"], each["rung"]) for each in entries] == [("slow", 20, 1)]
    after_rung = trained_on(network(), candidate(steps=20))
    assert same(runner.trainer.recipe.model, after_rung)
    assert runner.entrant.result == track.valid.measure(after_rung)
    runner.finish()
    assert same(runner.trainer.recipe.model, trained_on(after_rung, candidate()))
    assert runner.entry()["steps"] == 20 + STEPS
    assert labels == ["slow, rung 1", "fast, rung 1", "fast"]


def test_a_rung_that_is_longer_than_a_candidates_training_is_as_long_as_that():
    short = candidate(name="short", steps=5)
    runner, entries = run_race(
        RaceSpec(candidates=(short, candidate()), rungs=(20,)), made_track(), say=lambda sentence: None
    )
    assert runner.steps == 20
    assert entries[0]["steps"] == 5


def test_who_does_not_fit_is_refused_by_name_and_the_others_race():
    misfit, said = candidate(LastK(blocks=99), name="misfit"), []
    race = RaceSpec(candidates=(misfit, candidate(name="slow", lr=1e-5), candidate(name="fast")), rungs=(10,))
    runner, entries = run_race(race, made_track(), say=said.append)
    assert runner.spec.name == "fast"
    assert [(each["name"], each["status"], each["steps"]) for each in entries] == [
        ("misfit", "refused", 0), ("slow", "stopped", 10),
    ]  # fmt: skip
    assert "misfit does not take part" in said[0]


def test_without_rungs_the_first_that_fits_trains_and_every_other_has_its_entry():
    race = RaceSpec(candidates=(candidate(LastK(blocks=99), name="misfit"), candidate(), candidate(name="second")))
    runner, entries = run_race(race, made_track(), say=lambda sentence: None)
    assert runner.spec.name == "one"
    assert [(each["name"], each["status"]) for each in entries] == [("misfit", "refused"), ("second", "stopped")]
    assert "no rung compared second with one" in entries[1]["reason"]


def test_nobody_wins_where_nobody_fits():
    misfits = [candidate(LastK(blocks=99), name=name) for name in ("one", "two")]
    runner, entries = run_race(
        RaceSpec(candidates=tuple(misfits), rungs=(10,)), made_track(), say=lambda sentence: None
    )
    assert runner is None
    assert [each["status"] for each in entries] == ["refused", "refused"]
