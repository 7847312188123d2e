"""Spaces and methods by themselves: what is drawn, what goes on, what is copied."""

from __future__ import annotations

import math
import statistics
from collections import Counter

import pytest
from scipy.stats import kstest
from toy_search import branin

from regraft.errors import ConfigError
from regraft.search.methods import ASHA, GP, PBT, TPE, Grid, Hyperband, Random
from regraft.search.schedulers import brackets
from regraft.search.space import Space

PLANE = Space({"x": {"uniform": [-5, 10]}, "y": {"uniform": [0, 15]}})
OPTIMIZERS = {
    "train.optimizer": {
        "choice": [
            {"AdamW": {"lr": {"log": [1e-5, 1e-1]}}},
            {"SGD": {"lr": {"log": [1e-3, 1]}, "momentum": {"choice": [0.0, 0.9]}}},
        ]
    },
    "train.batch_size": {"log_int": [8, 64]},
}  # fmt: skip
TREE = {
    "data": {"main": {"path": "wine"}},
    "models": {"main": {"network": "MLP"}},
    "stages": [{"name": "adapt", "steps": 9}],
}


def run(method, space=PLANE, *, trials=None, seed=0, least=1 / 27, value=None):
    """All legs of a search, told at once what they are worth."""
    value = value or (lambda leg: -branin(leg.drawn["x"], leg.drawn["y"]))
    scheduler = method.start(space, shares=method.shares(least), trials=trials, seed=seed)
    legs = []
    while (leg := scheduler.ask()) is not None:
        scheduler.tell(leg, value(leg))
        legs.append(leg)
    return legs, scheduler


# ---- spaces


def test_a_point_makes_a_recipe_with_the_fields_of_its_options_only():
    space = Space(OPTIMIZERS)
    adam = space.recipe(TREE, {"train.optimizer": 0, "train.optimizer[0].AdamW.lr": 0.003, "train.batch_size": 16})
    assert type(adam.train.optimizer).__name__ == "AdamW"
    assert (adam.train.optimizer.lr, adam.train.batch_size) == (0.003, 16)
    drawn = {
        "train.optimizer": 1,
        "train.optimizer[1].SGD.lr": 0.1,
        "train.optimizer[1].SGD.momentum": 1,
        "train.batch_size": 8,
    }
    assert space.recipe(TREE, drawn).train.optimizer.momentum == 0.9
    assert {frozenset(leg.drawn) for leg in run(Random(), space, trials=30, value=lambda leg: 0.0)[0]} == {
        frozenset({"train.optimizer", "train.optimizer[0].AdamW.lr", "train.batch_size"}),
        frozenset(
            {"train.optimizer", "train.optimizer[1].SGD.lr", "train.optimizer[1].SGD.momentum", "train.batch_size"}
        ),
    }


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"a": 3}, "search.space.a: must be one of"),
        ({"a": {"log": [0, 1]}}, "must have numbers above 0"),
        ({"a": {"uniform": [1, 1]}}, "two numbers, the lower one first"),
        ({"a": {"int": [1, 2.5]}}, "must have whole numbers"),
        ({"a": {"choice": []}}, "must be one of"),
        ({"a": {"choice": [1, {"log": [3]}]}}, r"search.space.a\[1\]: log must have two numbers"),
        ({"a": {"choice": [1]}, "a.b": {"int": [1, 2]}}, "search.space.a.b: lies within search.space.a"),
    ],
)
def test_what_is_no_domain_is_refused_with_its_path(tree, said):
    with pytest.raises(ConfigError, match=said):
        Space(tree)


# ---- grid and random


@pytest.mark.inventory("hpo-grid", by="search: {method: Grid}")
def test_a_grid_has_every_combination_once_those_of_nested_fields_too():
    space = Space(OPTIMIZERS)
    legs, _ = run(Grid(points=3), space, value=lambda leg: 0.0)
    points = [tuple(sorted(leg.drawn.items())) for leg in legs]
    assert len(points) == len(set(points)) == space.grid_size(3) == (3 + 3 * 2) * 3
    rates = sorted({leg.drawn["train.optimizer[0].AdamW.lr"] for leg in legs if leg.drawn["train.optimizer"] == 0})
    assert rates == pytest.approx([1e-5, 1e-3, 1e-1])
    assert sorted({leg.drawn["train.batch_size"] for leg in legs}) == [8, 23, 64]


@pytest.mark.inventory("hpo-random", by="search: {method: Random}")
def test_random_search_draws_log_ranges_uniformly_in_the_logarithm():
    space = Space({"lr": {"log": [1e-5, 1e-1]}, "width": {"log_int": [1, 1000]}, "drop": {"uniform": [0.0, 0.5]}})
    legs, _ = run(Random(), space, trials=400, value=lambda leg: 0.0)
    rates = [math.log10(leg.drawn["lr"]) for leg in legs]
    assert kstest(rates, "uniform", args=(-5, 4)).pvalue > 0.01
    assert kstest([leg.drawn["lr"] for leg in legs], "uniform", args=(1e-5, 1e-1)).pvalue < 1e-6
    assert kstest([leg.drawn["drop"] for leg in legs], "uniform", args=(0, 0.5)).pvalue > 0.01
    assert 0.2 < sum(leg.drawn["width"] <= 10 for leg in legs) / 400 < 0.5


@pytest.mark.inventory("hpo-random", by="search: {seed: 0}")
def test_the_seed_decides_what_is_drawn_and_every_trial_is_drawn_anew():
    one, again, other = (run(Random(), trials=6, seed=seed)[0] for seed in (4, 4, 5))
    assert [leg.drawn for leg in one] == [leg.drawn for leg in again]
    assert [leg.drawn for leg in one] != [leg.drawn for leg in other]
    assert len({leg.drawn["x"] for leg in one}) == 6


# ---- Bayesian


def medians(method, trials, seeds):
    """Median over seeds of the best value of Branin's function found, of a method and of random search."""
    return [
        statistics.median(
            min(branin(leg.drawn["x"], leg.drawn["y"]) for leg in run(each, trials=trials, seed=seed)[0])
            for seed in range(seeds)
        )
        for each in (method, Random())
    ]


@pytest.mark.inventory("hpo-bayes", by="search: {method: TPE}")
def test_tpe_beats_random_search_on_branin_at_the_same_number_of_trials():
    tpe, random = medians(TPE(), 40, 7)
    assert tpe < random
    assert tpe < 0.3979 + 0.5


@pytest.mark.slow
@pytest.mark.inventory("hpo-bayes", by="search: {method: GP}")
def test_a_gaussian_process_beats_random_search_on_branin_with_fewer_trials():
    gp, random = medians(GP(), 25, 5)
    assert gp < random
    assert gp < 0.3979 + 0.1


# ---- Hyperband and ASHA


@pytest.mark.inventory("hyperband", by="search: {method: Hyperband}")
def test_the_brackets_are_those_of_the_paper():
    # Li et al., 2018, JMLR 18(185), algorithm 1 with R = 81 and eta = 3: n = ceil((s_max + 1) / (s + 1) * 3^s), floor(n / 3^i)
    expected = [
        [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
        [(34, 3), (11, 9), (3, 27), (1, 81)],
        [(15, 9), (5, 27), (1, 81)],
        [(8, 27), (2, 81)],
        [(5, 81)],
    ]
    assert [[(n, round(r, 9)) for n, r in rungs] for rungs in brackets(81, 3)] == expected


@pytest.mark.inventory("hyperband", by="search: {method: Hyperband}")
def test_hyperband_runs_its_brackets_and_only_the_best_of_a_rung_go_on():
    legs, scheduler = run(Hyperband(eta=3), least=1 / 9)
    planned = brackets(9, 3)
    for number, rungs in enumerate(planned):
        own = [leg for leg in legs if leg.bracket == number]
        counts = Counter(leg.level for leg in own)
        assert [counts[level] for level in sorted(counts)] == [count for count, _ in rungs]
    for level in (0, 1):
        first = [t for t in scheduler.trials if t.bracket == 0 and level in t.worth]
        went = [t for t in first if level + 1 in t.worth]
        assert min(t.worth[level] for t in went) >= max([t.worth[level] for t in first if t not in went])
    assert all((leg.after is None) == (leg.source is None) for leg in legs)


def test_hyperband_ends_with_the_trials_it_was_given():
    _, scheduler = run(Hyperband(eta=3), trials=12, least=1 / 9)
    assert len(scheduler.trials) == 12
    assert any(2 in trial.worth for trial in scheduler.trials)


@pytest.mark.inventory("asha", by="search: {method: ASHA}")
def test_asha_promotes_the_best_third_without_waiting_for_a_rung_to_fill():
    legs, scheduler = run(ASHA(sampler="Random"), trials=27)
    assert legs[3].trial in {0, 1, 2}  # after three results one goes on, and nobody waits for the other 24
    assert legs[3].level == 1
    reached = Counter(max(trial.worth) for trial in scheduler.trials)
    assert sum(reached[level] for level in (1, 2, 3)) >= 9
    assert reached[3] >= 1
    for leg in legs:
        if leg.after is not None:
            assert legs[leg.after].trial == leg.trial
            assert legs[leg.after].level == leg.level - 1


@pytest.mark.parametrize("method", [ASHA, Hyperband])
def test_a_gaussian_process_learns_from_trials_that_were_not_trained_to_the_end(method):
    drawn = {}
    for sampler in ("GP", "Random"):
        _, scheduler = run(method(sampler=sampler), trials=14)
        drawn[sampler] = [trial.drawn for trial in scheduler.trials]
    assert drawn["GP"][:10] == drawn["Random"][:10]
    assert all(gp != random for gp, random in zip(drawn["GP"][10:], drawn["Random"][10:], strict=True))


@pytest.mark.inventory("asha", by="search: {method: ASHA}")
def test_asha_goes_on_while_a_result_is_missing_and_takes_no_failed_trial_further():
    method = ASHA(sampler="Random")
    scheduler = method.start(PLANE, shares=method.shares(1 / 9), trials=12, seed=0)
    lost = scheduler.ask()
    asked = []
    while (leg := scheduler.ask()) is not None:
        asked.append(leg)
        scheduler.tell(leg, None if leg.trial == 5 else -branin(leg.drawn["x"], leg.drawn["y"]))
    assert {leg.trial for leg in asked} == set(range(1, 12))
    assert max(leg.level for leg in asked) == 2
    assert [leg.level for leg in asked if leg.trial == 5] == [0]
    scheduler.tell(lost, 1e9)
    assert scheduler.ask().trial == lost.trial  # and when it comes, it counts


# ---- PBT


@pytest.mark.inventory("pbt", by="search: {method: PBT}")
def test_the_worst_members_copy_the_best_ones_and_perturb_their_values():
    space = Space({"lr": {"log": [1e-4, 1e-1]}, "n": {"int": [1, 100]}})
    legs, _ = run(PBT(generations=4, anew=0.0), space, trials=8, value=lambda leg: leg.drawn["lr"])
    by_number = {leg.number: leg for leg in legs}
    assert Counter(leg.level for leg in legs) == {0: 8, 1: 8, 2: 8, 3: 8}
    copies = [leg for leg in legs if leg.source not in (None, leg.trial)]
    assert len(copies) == 3 * 2  # a quarter of eight, after each generation but the last
    for leg in legs:
        if leg.after is None:
            continue
        parent = by_number[leg.after]
        assert (parent.level, parent.trial) == (leg.level - 1, leg.source)
        if leg.source == leg.trial:
            assert leg.drawn == parent.drawn
            continue
        level = sorted((one for one in legs if one.level == parent.level), key=lambda one: -one.drawn["lr"])
        assert parent in level[:2]
        assert next(one for one in level if one.trial == leg.trial) in level[-2:]
        ratio = leg.drawn["lr"] / parent.drawn["lr"]
        assert ratio == pytest.approx(0.8) or ratio == pytest.approx(1.2) or leg.drawn["lr"] == 1e-1
        assert leg.drawn["n"] != parent.drawn["n"] or parent.drawn["n"] in (1, 100)


def test_a_population_that_has_failed_as_a_whole_ends():
    legs, _ = run(PBT(generations=3), trials=4, value=lambda leg: None)
    assert len(legs) == 4
