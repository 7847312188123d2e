"""Which test shows which feature: `pytest --inventory FILE` writes the table, and fails where a row has no passing test.

A test says so by `@pytest.mark.inventory("focal", by="train.loss: Focal")`: rows of tests/inventory_rows.py, and what a user
types to have them. The hooks here are taken over by conftest.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from inventory_rows import AREAS

PROPERTY = "inventory"  # a report carries [row, by] under this name, also from another process


@dataclass(frozen=True)
class Shown:
    """A row, and a passing test that shows it."""

    row: str
    by: str  # what a user types
    test: str  # node id


def known() -> set[str]:
    """Ids of all rows."""
    return {row for rows in AREAS.values() for row, _ in rows}


def claims(marks: Iterable[pytest.Mark]) -> list[tuple[str, str]]:
    """(row, by) of each marker, in order.

    Raises:
        pytest.UsageError: a row is not in the inventory, or `by` is missing.
    """
    found: list[tuple[str, str]] = []
    for mark in marks:
        unknown = sorted(set(mark.args) - known())
        if unknown or not mark.args or not mark.kwargs.get("by"):
            raise pytest.UsageError(
                f"inventory{mark.args}: rows must be those of tests/inventory_rows.py and `by` what a user types; "
                f"unknown: {unknown or 'none'}, by: {mark.kwargs.get('by')!r}"
            )
        found += [(row, mark.kwargs["by"]) for row in mark.args]
    return found


def table(shown: Sequence[Shown], areas: Mapping[str, Sequence[tuple[str, str]]] = AREAS) -> str:
    """The page: a table an area, a line a row, with every test that showed it."""
    rows = [row for entries in areas.values() for row, _ in entries]
    done = {one.row for one in shown}
    lines = [
        "<!-- Written by `make inventory` from the tests that passed. -->",
        "",
        "# Inventory",
        "",
        f"{len(done & set(rows))} of {len(rows)} rows have a test that passes. A row names the feature, what a user types "
        "to have it, and the tests that show it to work.",
    ]
    for area, entries in areas.items():
        lines += ["", f"## {area}", "", "| row | feature | by | shown by |", "|---|---|---|---|"]
        for row, feature in entries:
            mine = [one for one in shown if one.row == row]
            by = "; ".join(dict.fromkeys(one.by for one in mine)) or "-"
            tests = (
                ", ".join(f"`{_short(name)}`" for name in dict.fromkeys(_bare(one.test) for one in mine)) or "**none**"
            )
            lines.append(f"| {row} | {feature} | {_cell(by)} | {_cell(tests)} |")
    return "\n".join(lines) + "\n"


def missing(shown: Sequence[Shown], areas: Mapping[str, Sequence[tuple[str, str]]] = AREAS) -> list[str]:
    """Rows without a passing test, in order."""
    done = {one.row for one in shown}
    return [row for entries in areas.values() for row, _ in entries if row not in done]


def _bare(test: str) -> str:
    return test.split("[")[0]


def _short(test: str) -> str:
    file, _, name = test.partition("::")
    return f"{file.removeprefix('tests/')}: {name.replace('::', '.')}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# ---- hooks


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--inventory FILE`."""
    parser.addoption("--inventory", metavar="FILE", help="write which passing test shows which row of the inventory")


def pytest_configure(config: pytest.Config) -> None:
    """The process that collects the reports writes the table."""
    if config.getoption("--inventory") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Writer(Path(config.getoption("--inventory"))), "inventory-writer")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every marker is checked, also where nothing is written."""
    for item in items:
        item.user_properties += [(PROPERTY, claim) for claim in dict.fromkeys(claims(item.iter_markers("inventory")))]


class Writer:
    """Gathers the rows that passing tests show."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shown: list[Shown] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test has passed: its rows are shown."""
        if report.when == "call" and report.passed:
            claims = [value for name, value in report.user_properties if name == PROPERTY]
            self.shown += [Shown(row=row, by=by, test=report.nodeid) for row, by in claims]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """The table is written; a row without a test fails the session."""
        self.shown.sort(key=lambda one: one.test)
        self.path.write_text(table(self.shown), encoding="utf-8")
        if missing(self.shown) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """How many, and which are missing."""
        absent = missing(self.shown)
        terminalreporter.write_line(
            f"inventory: {len(known()) - len(absent)} of {len(known())} rows shown; {self.path}"
        )
        if absent:
            terminalreporter.write_line(f"no passing test shows: {', '.join(absent)}")
