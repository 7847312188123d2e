"""The table of features and tests: what goes in, what is missing, and which markers are refused."""

from __future__ import annotations

import pytest
from inventory import Shown, claims, known, missing, table
from inventory_rows import AREAS

TWO = {"A. Losses": (("ce", "Cross-entropy"), ("focal", "Focal loss"))}


def test_a_row_without_a_passing_test_is_named():
    assert missing([Shown("ce", "train.loss: CrossEntropy", "tests/a.py::test_x")], TWO) == ["focal"]


def test_the_table_has_a_line_a_row_with_its_test_once():
    shown = [Shown("ce", "train.loss: CrossEntropy", f"tests/losses/a.py::test_x[{i}]") for i in range(3)]
    lines = table(shown, TWO).splitlines()
    assert "| ce | Cross-entropy | train.loss: CrossEntropy | `losses/a.py: test_x` |" in lines
    assert "| focal | Focal loss | - | **none** |" in lines
    assert any(line.startswith("1 of 2 rows") for line in lines)


def test_a_row_stands_in_one_area_only():
    assert len(known()) == sum(len(rows) for rows in AREAS.values()) == 174


@pytest.mark.parametrize("mark", [pytest.mark.inventory("no-such-row", by="x"), pytest.mark.inventory("ce")])
def test_a_marker_with_an_unknown_row_or_without_what_is_typed_is_refused(mark: pytest.MarkDecorator):
    with pytest.raises(pytest.UsageError, match=r"rows must be those of tests/inventory_rows.py"):
        claims([mark.mark])
