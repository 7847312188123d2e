"""A candidate of a race is judged by, and ends with, the weights that its techniques make."""

from __future__ import annotations

import pytest
import torch
import toy

from regraft.config.recipe import CandidateSpec, TrainSpec
from regraft.core import fit
from regraft.data.toys import Rows
from regraft.models.networks import MLP
from regraft.optim.optimizers import AdamW
from regraft.phases.choose.race import Track, finish
from regraft.phases.training import Valid, supervised_recipe
from regraft.techniques.regularise.l0_penalty import L0Penalty
from regraft.techniques.regularise.weight_average import WeightAverage

STEPS = 80


class NoLog:
    def write(self, records):
        """Nobody reads it."""


def network():
    return MLP(width=16, depth=2).build((8,), 4, seed=0)


def rows():
    columns = toy.blobs(96)
    return Rows(columns["x"]), columns["y"]


def candidate(technique):
    train = TrainSpec(batch_size=32, optimizer=AdamW(lr=1e-2))
    return CandidateSpec(name="one", steps=STEPS, techniques=(technique,), train=train, why="")


def raced(technique):
    """The candidate's model after the race, and its result."""
    encoded, targets = rows()
    valid = Valid(encoded=encoded, targets=targets, task="multiclass")
    track = Track(model=network(), encoded=encoded, targets=targets, valid=valid, task="multiclass", seed=0, validations=1,
                  patience=None, log_for=lambda name: NoLog())  # fmt: skip
    runner = track.runner(candidate(technique))
    result = finish(runner)
    model = runner.trainer.recipe.model
    assert valid.measure(model) == {"score": result["score"], "loss": result["loss"]}  # the weights it was judged by
    return model


def trained(technique):
    """The same candidate trained without a race."""
    encoded, targets = rows()
    recipe = supervised_recipe(
        MLP(width=16, depth=2).build((8,), 4, seed=0),
        encoded,
        targets,
        task="multiclass",
        candidate=candidate(technique),
        seed=0,
    )
    fit(recipe)
    return recipe.model


@pytest.mark.parametrize(
    "technique", [WeightAverage(decay=0.95), L0Penalty(weight=0.01, speed=100)], ids=["average", "gates"]
)
def test_what_a_technique_makes_of_the_weights_at_the_end_survives_the_race(technique):
    ours, theirs = raced(technique), trained(technique)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_race_keeps_the_zeros_of_closed_gates():
    model = raced(L0Penalty(weight=0.05, speed=100))
    assert any(bool((p == 0).all(1).any()) for p in model.parameters() if p.ndim == 2)
