"""What a technique costs is said where it was measured, and nowhere else."""

from __future__ import annotations

from regraft.config.catalogue import CATALOGUE
from regraft.config.costs import cost_of, cost_sentence
from regraft.phases.describing import entry, entry_lines


def test_a_measured_cost_is_a_ratio_within_its_range_and_said_by_the_catalogue():
    measured = {name: cost for name in CATALOGUE["technique"] if (cost := cost_of(name)) is not None}
    assert len(measured) > 0.8 * len(CATALOGUE["technique"])
    for name, cost in measured.items():
        assert 0 < cost["low"] <= cost["ratio"] <= cost["high"], name
        assert cost_sentence(cost) in entry_lines(entry(name))


def test_what_was_not_measured_has_no_cost():
    assert cost_of("CrossEntropy") is None
    assert entry("CrossEntropy")["cost"] is None
