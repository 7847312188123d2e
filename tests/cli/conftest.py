"""A runner for commands in this process, and small tables to run them on."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli.tables import HEADER, points, write_csv
from typer.testing import CliRunner, Result


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="session")
def regraft():
    """`regraft("audit", path, ...)` runs a command and gives its result: exit_code, stdout, stderr."""
    from regraft.cli.app import app

    def run(*arguments: object, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(app, [str(each) for each in arguments], input=stdin)

    return run


@pytest.fixture(scope="session")
def table(tmp_path_factory) -> Path:
    return write_csv(tmp_path_factory.mktemp("table") / "points.csv", HEADER, points())


@pytest.fixture(scope="session")
def numbers_table(tmp_path_factory) -> Path:
    rows = [[a, b, place, round(2 * a - b, 3)] for a, b, place, _ in points(150, seed=3)]
    return write_csv(tmp_path_factory.mktemp("numbers") / "numbers.csv", ["width", "height", "place", "target"], rows)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, table, regraft) -> Path:
    """A run on the table, walked to its end."""
    out = tmp_path_factory.mktemp("runs") / "points"
    result = regraft("adapt", table, "--out", out, "--budget", "15s", "--quiet")
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture(scope="session")
def finished_numbers(tmp_path_factory, numbers_table, regraft) -> Path:
    """A regression run, walked to its end."""
    out = tmp_path_factory.mktemp("runs") / "numbers"
    result = regraft("adapt", numbers_table, "--out", out, "--budget", "15s", "--quiet", "--label", "target")
    assert result.exit_code == 0, result.stderr
    return out
