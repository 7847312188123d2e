"""StagedThaw is a list of stages that train ever more of the network."""

from __future__ import annotations

import pytest
import torch
import toy
from hypothesis import given
from hypothesis import strategies as st

from regraft.core import compile, fit
from regraft.core.train import advance, start
from regraft.errors import ConfigError
from regraft.optim.optimizers import Adam
from regraft.optim.schedules import Cosine
from regraft.techniques.transfer.staged_thaw import StagedThaw, divided


@given(st.integers(1, 10**6), st.lists(st.floats(0.01, 10), min_size=1, max_size=8))
def test_the_parts_have_all_steps_together(steps, shares):
    parts = divided(steps, tuple(shares))
    assert sum(parts) == steps
    for part, share in zip(parts, shares, strict=True):
        assert abs(part - steps * share / sum(shares)) <= 1 + 1e-6 * steps


def test_the_head_trains_first_and_the_network_thaws_from_the_top():
    stages = compile(toy.recipe(toy.stage(steps=10)), [StagedThaw(groups_per_stage=1)]).stages
    head, upper, lower = ({f"{i}.weight", f"{i}.bias"} for i in (4, 2, 0))
    assert [stage.trains for stage in stages] == [head, head | upper, head | upper | lower]
    assert [stage.steps for stage in stages] == [2, 3, 5]
    assert [stage.name for stage in stages] == ["toy-head", "toy-thaw1", "toy-thaw2"]


def test_a_layer_does_not_change_before_it_thaws():
    recipe = compile(toy.recipe(toy.stage(steps=9)), [StagedThaw(shares=(1, 1, 1))])
    first = recipe.model[0].weight.detach().clone()
    second = recipe.model[2].weight.detach().clone()
    run = advance(start(recipe, 0))
    assert torch.equal(recipe.model[2].weight, second)
    run = advance(start(recipe, 1, previous=run))
    assert not torch.equal(recipe.model[2].weight, second)
    assert torch.equal(recipe.model[0].weight, first)
    advance(start(recipe, 2, previous=run))
    assert not torch.equal(recipe.model[0].weight, first)


def test_momentum_is_carried_over_for_what_trained_before_and_starts_fresh_for_what_thaws():
    recipe = compile(toy.recipe(toy.stage(steps=8, update=toy.descent(Adam(lr=0.01)))), [StagedThaw(shares=(1, 1))])
    run = advance(start(recipe, 0))
    head = run.step.updates["all"].base.optimizer.state[recipe.model[4].weight]
    after = start(recipe, 1, previous=run).step.updates["all"].base.optimizer.state
    assert torch.equal(after[recipe.model[4].weight]["exp_avg"], head["exp_avg"])
    assert recipe.model[0].weight not in after


@pytest.mark.parametrize("schedule", ["whole", "each"])
def test_the_rate_follows_one_clock_across_the_thaw_or_starts_again_with_each(schedule):
    seen = []

    class Spy(Cosine):
        def __call__(self, clock):
            seen.append((clock.step, clock.total))
            return super().__call__(clock)

    update = toy.sgd(lr=0.1, schedule=Spy())
    fit(compile(toy.recipe(toy.stage(steps=6, update=update)), [StagedThaw(shares=(1, 2), schedule=schedule)]))
    expected = [(i, 6) for i in range(6)] if schedule == "whole" else [(0, 2), (1, 2), *((i, 4) for i in range(4))]
    assert seen == expected


def test_one_share_trains_the_head_alone():
    (stage,) = compile(toy.recipe(toy.stage()), [StagedThaw(shares=(1,))]).stages
    assert stage.trains == {"4.weight", "4.bias"}


@pytest.mark.parametrize(
    ("technique", "steps", "sentence"),
    [
        (StagedThaw(shares=(1, 1, 1, 1)), 40, "thawed entirely before the last of 4 stages"),
        (StagedThaw(), 2, "has 2 steps, too few"),
    ],
)
def test_what_cannot_be_divided_is_refused(technique, steps, sentence):
    with pytest.raises(ConfigError, match=sentence):
        compile(toy.recipe(toy.stage(steps=steps)), [technique])


def test_shares_must_be_positive():
    with pytest.raises(ConfigError, match="every share must be above 0"):
        StagedThaw(shares=(0.5, 0.0))
