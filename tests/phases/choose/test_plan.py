"""Budgets become counted work, rules order the field, and a rung decides only what it can tell apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from regraft.config.recipe import CandidateSpec, TrainSpec
from regraft.data.sources import Examples
from regraft.errors import BudgetError, ConfigError
from regraft.phases.choose import plan_phase
from regraft.phases.choose.plan import Speed, make_race, parse_budget
from regraft.phases.choose.race import Entrant, standings
from regraft.phases.choose.rules import Facts, candidate, order

FACTS = Facts(modality="text", rows=9000, num_blocks=6, best_depth=1.0, precision="bf16")
SPEED = Speed(forward_s=0.001, step_s=0.1, batch_size=32)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("3m", 180), ("1.5h", 5400), (42, 42)])
def test_a_budget_is_an_amount_of_time(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-3m", "0s", "nan"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(BudgetError, match="--budget: "):
        parse_budget(text)


def test_small_and_far_data_tries_adapters_first():
    names = [name for name, _ in order(Facts(modality="image", rows=300, num_blocks=26, best_depth=0.5))]
    assert names[0] == "adapter"
    assert set(names) == {"adapter", "full", "lora", "last-k", "thaw", "norm"}


def test_near_and_large_data_tries_full_fine_tuning_first():
    assert order(FACTS)[0][0] == "full"


def test_an_unknown_strategy_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="no strategy is called 'lorra'; did you mean 'lora'"):
        candidate("lorra", FACTS, steps=1, why="")


COSTS = {"full": 1.0, "last-k": 0.7, "lora": 0.85, "thaw": 0.95, "norm": 0.8, "adapter": 0.85}


def test_the_race_and_the_longest_training_fill_the_seconds():
    race, _ = make_race(FACTS, SPEED, seconds=120)
    steps = {c.name: c.steps for c in race.candidates}
    assert list(steps) == ["probe", "full", "last-k"]
    (rung,) = race.rungs
    raced = 0.1 * rung * (1.0 + 0.7)
    assert raced == pytest.approx(0.15 * 120, abs=0.2)
    filling = 9000 * 0.001  # the store of the lower half, for last-k
    assert 0.1 * steps["full"] == pytest.approx(120 - raced - filling, abs=0.1)


def test_time_that_no_training_has_a_use_for_goes_to_the_race():
    few = replace(FACTS, rows=1000)  # five epochs are 160 steps
    race, _ = make_race(few, SPEED, seconds=60)
    names = [c.name for c in race.candidates if c.steps]
    assert set(names) == set(COSTS)
    assert {c.steps for c in race.candidates if c.steps} == {160}
    first, second = race.rungs
    assert second == 3 * first
    raced = 0.1 * (first * sum(COSTS.values()) + second * (1.0 + 0.95 + 0.85))
    assert 0.45 * 60 < raced <= 0.5 * 60


def test_a_race_that_would_leave_no_time_for_its_winner_is_not_run():
    race, reasons = make_race(replace(FACTS, rows=700), SPEED, seconds=4.5)
    assert [c.name for c in race.candidates] == ["probe", "last-k"]
    assert race.rungs == ()
    assert not any("rung" in reason for reason in reasons)


def test_more_time_never_means_fewer_steps():
    counts = []
    for seconds in (60, 120, 600, 6000):
        race, _ = make_race(FACTS, SPEED, seconds=seconds)
        counts.append(max(c.steps for c in race.candidates))
    assert counts == sorted(counts)
    assert counts[-1] == 5 * 282  # five epochs at most


def test_without_time_the_probe_stands_and_says_why():
    race, reasons = make_race(FACTS, SPEED, seconds=1)
    assert [c.name for c in race.candidates] == ["probe"]
    assert "too few to train anything" in reasons[0]


def test_a_strategy_that_was_asked_for_is_not_dropped_in_silence():
    with pytest.raises(BudgetError, match="lora needs at least 70 steps"):
        make_race(FACTS, SPEED, seconds=1, only="lora")


def ranked(**scores):
    """Names, best first, of candidates in the order of the rules; two standard errors of 0.8 on 900 rows are 0.027."""
    specs = {name: CandidateSpec(name=name, steps=9, techniques=(), train=TrainSpec(), why="") for name in scores}
    entrants = [Entrant(specs[name], result={"score": score, "loss": 1.0 - score}) for name, score in scores.items()]
    return [each.spec.name for each in standings(entrants, 900)]


def test_a_rung_keeps_the_order_of_the_rules_within_its_noise():
    assert ranked(full=0.78, lora=0.805, norm=0.70) == ["full", "lora", "norm"]


def test_a_rung_decides_what_it_can_tell_apart():
    assert ranked(full=0.70, lora=0.80, norm=0.75) == ["lora", "norm", "full"]


def test_full_fine_tuning_begins_at_the_rate_that_was_measured_for_its_kind():
    def rate(strategy, modality, parameters):
        facts = Facts(modality=modality, rows=900, num_blocks=6, best_depth=1.0, parameters=parameters)
        return candidate(strategy, facts, steps=9, why="").train.optimizer.lr

    assert rate("full", "text", 22_000_000) == 2e-4
    assert rate("full", "text", 110_000_000) == rate("full", "text", None) == rate("last-k", "text", 22_000_000) == 1e-4
    assert rate("full", "image", 213_000) == 1e-2
    assert rate("full", "image", 86_000_000) == rate("full", "image", None) == 3e-4
    assert rate("last-k", "image", 213_000) == 3e-4
    assert rate("lora", "text", 22_000_000) == 5e-4


def test_of_a_small_network_of_images_all_weights_come_first():
    facts = Facts(modality="image", rows=300, num_blocks=26, best_depth=0.5, parameters=213_000)
    assert [name for name, _ in order(facts)] == ["full", "adapter", "lora", "last-k", "thaw", "norm"]
    assert "213,000 parameters" in order(facts)[0][1]
    assert order(replace(facts, parameters=86_000_000))[0][0] == "adapter"


class Texts:
    """Examples of two lengths, whose batches take a second a thousand places."""

    inputs = ("x",)

    def __init__(self, lengths):
        self.lengths = np.array(lengths)

    def __len__(self):
        return len(self.lengths)

    def collate(self, rows):
        raise AssertionError("nobody reads them")


def test_a_timed_step_counts_as_a_batch_of_the_average_number_of_places(monkeypatch):
    clock = [0.0]
    source = Examples(Texts([5] * 96 + [50] * 32), None, batch_size=32, seed=0)
    places = [plan_phase.padded(source, step) for step in range(4)]
    assert sorted(places) == [160, 160, 160, 1600]

    class Made:
        done = 0

        def until(self, steps):
            clock[0] += places[self.done] / 1000
            self.done = steps

    made = Made()
    monkeypatch.setattr(plan_phase.time, "perf_counter", lambda: clock[0])
    assert [plan_phase.timed_step(made, source, 520) for _ in range(4)] == pytest.approx([0.520] * 4)
