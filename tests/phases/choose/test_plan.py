"""Budgets become counted work, rules order the field, and a rung decides only what it can tell apart."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from regraft.errors import BudgetError, ConfigError
from regraft.phases.choose.plan import Speed, make_race, parse_budget
from regraft.phases.choose.race import standings
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


def test_the_race_fits_into_its_seconds():
    race, _ = make_race(FACTS, SPEED, seconds=120)
    steps = {c.name: c.steps for c in race.candidates}
    assert steps["probe"] == 0
    assert list(steps) == ["probe", "full", "last-k", "lora"]
    lost = 0.1 * race.rungs[0] * (1.0 + 0.85)  # the two that cost most, where last-k wins; nobody else is left after that
    assert lost <= 0.3 * 120
    assert 0.1 * steps["full"] == pytest.approx(120 - lost, abs=0.1)


def test_what_a_race_of_two_rungs_costs_its_losers_is_taken_off():
    race, _ = make_race(FACTS, SPEED, seconds=160)
    first, second = race.rungs
    steps = {c.name: c.steps for c in race.candidates}
    assert list(steps) == ["probe", "full", "last-k", "lora", "thaw"]
    lost = 0.1 * (first * (1.0 + 0.85 + 0.7) + (second - first) * 1.0)  # of the two left, the cheaper wins
    assert 0.1 * steps["full"] == pytest.approx(160 - lost, abs=0.1)


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


@dataclass
class Entrant:
    name: str
    result: dict[str, float]


def entrants(**scores: float) -> list[Entrant]:
    return [Entrant(name, {"score": score, "loss": 1.0}) for name, score in scores.items()]


def test_a_rung_keeps_the_order_of_the_rules_within_its_noise():
    ranked = standings(entrants(full=0.80, lora=0.805, norm=0.70), 900)  # standard error 0.013
    assert [r.name for r in ranked] == ["full", "lora", "norm"]


def test_a_rung_decides_what_it_can_tell_apart():
    ranked = standings(entrants(full=0.70, lora=0.80, norm=0.75), 900)
    assert [r.name for r in ranked] == ["lora", "norm", "full"]


def test_full_fine_tuning_begins_at_the_rate_that_was_measured_for_its_kind():
    def rate(strategy, modality, parameters):
        facts = Facts(modality=modality, rows=900, num_blocks=6, best_depth=1.0, parameters=parameters)
        return candidate(strategy, facts, steps=9, why="").train.optimizer.lr

    assert rate("full", "text", 22_000_000) == 1e-4
    assert rate("full", "image", 213_000) == 1e-2
    assert rate("full", "image", 86_000_000) == rate("full", "image", None) == 3e-4
    assert rate("last-k", "image", 213_000) == 3e-4
    assert rate("lora", "text", 22_000_000) == 5e-4
