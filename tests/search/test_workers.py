"""Workers that are killed, frozen or broken: every leg of every trial ends once, and the search goes on."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import pytest

from regraft.errors import RunError
from regraft.parallel.processes import Processes
from regraft.search.engine import Engine
from regraft.search.journal import Journal
from regraft.search.methods import ASHA, Random
from regraft.search.space import Space
from regraft.search.workers import Here

SPACE = Space({"x": {"uniform": [-5, 10]}, "y": {"uniform": [0, 15]}})


def engine(folder: Path, trials: int, method=None, window=None) -> Engine:
    method = method or Random()
    shares = method.shares(1 / 27)
    scheduler = method.start(SPACE, shares=shares, trials=trials, seed=3)
    return Engine(scheduler, Journal(folder / "journal.jsonl"), window=window)


def work_of(folder: Path, kill: dict[str, int]):
    return lambda leg: {"leg": leg.to_json(), "marks": str(folder), "kill": kill}


def run(folder: Path, made: Engine, target: str, *, workers: int = 2, kill=None, silent: float = 20.0, **more) -> bool:
    pool = Processes(workers, target, log=folder / "log", silent=silent)
    try:
        return made.run(pool, work_of(folder, kill or {}), **more)
    finally:
        pool.close()


def check_the_books(made: Engine, folder: Path) -> Counter:
    """Every leg was asked for once and ended once, and every lost attempt stands in the journal; counts by what happened."""
    records = list(Journal(folder / "journal.jsonl").read())
    asked = [r["ask"]["number"] for r in records if "ask" in r]
    ends = [r["end"]["leg"] for r in records if "end" in r]
    assert asked == sorted(set(asked))
    assert sorted(ends) == sorted(set(ends)) == asked
    return Counter([r["end"]["state"] for r in records if "end" in r] + ["RETRY" for r in records if "RETRY" in r])


def killed(folder: Path, kills: int) -> None:
    """`kills` workers die, some legs lose one and a fifth of them two: the first are done again, the others fail."""
    twice = kills // 5
    once = kills - 2 * twice
    trials = once + twice + 4
    kill = {str(n): 2 if n < twice else 1 for n in range(once + twice)}
    made = engine(folder, trials)
    began = time.monotonic()
    assert run(folder, made, "toy_search:fragile", kill=kill)
    counts = check_the_books(made, folder)
    assert counts == {"COMPLETE": once + 4, "FAIL": twice, "RETRY": once + twice}
    assert counts["RETRY"] + counts["FAIL"] == kills
    failed = [o for o in made.outcomes.values() if o.state == "FAIL"]
    assert all("was killed by SIGKILL" in o.reason for o in failed)
    assert {o.attempts for n, o in made.outcomes.items() if once + twice <= n} == {1}
    assert time.monotonic() - began < 1.5 * kills + 30


@pytest.mark.inventory("asha", by="regraft search --workers K")
def test_twenty_killed_workers_lose_and_double_no_trial(tmp_path):
    killed(tmp_path, 20)


@pytest.mark.slow
def test_a_hundred_killed_workers_lose_and_double_no_trial(tmp_path):
    killed(tmp_path, 100)


@pytest.mark.inventory("asha", by="search: {method: ASHA}")
def test_asha_promotes_while_a_killed_worker_is_replaced_and_ends_with_the_same_trials(tmp_path):
    made = engine(tmp_path, 27, ASHA(sampler="Random"))
    assert run(tmp_path, made, "toy_search:fragile", kill={"0": 1, "5": 2, "11": 1})
    counts = check_the_books(made, tmp_path)
    assert counts["FAIL"] == 1
    assert counts["RETRY"] == 3
    reached = Counter(made.legs[n].level for n, o in made.outcomes.items() if o.state == "COMPLETE")
    assert reached[0] >= 26
    assert reached[3] >= 1


def test_a_worker_that_freezes_is_found_out_and_its_trial_done_by_another(tmp_path):
    made = engine(tmp_path, 6)
    said: list[str] = []
    began = time.monotonic()
    assert run(tmp_path, made, "toy_search:frozen", silent=3.0, say=said.append)
    assert time.monotonic() - began < 30
    assert check_the_books(made, tmp_path) == {"COMPLETE": 6, "RETRY": 1}
    assert "gave no sign of life for 3 s" in said[0]


def test_what_no_trial_can_help_ends_the_search_with_a_sentence(tmp_path):
    with pytest.raises(RunError, match="no space left on device; put that right and resume the search"):
        run(tmp_path, engine(tmp_path, 4), "toy_search:broken")


def test_work_that_cannot_be_imported_ends_the_search_rather_than_each_of_its_trials(tmp_path):
    made = engine(tmp_path, 4)
    with pytest.raises(RunError, match="ModuleNotFoundError: No module named 'nowhere'"):
        run(tmp_path, made, "nowhere:score")
    assert made.outcomes == {}


def test_a_search_that_is_stopped_and_gone_on_with_is_the_one_that_was_not(tmp_path):
    from toy_search import score

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    one = engine(whole, 27, ASHA())
    assert one.run(Here(score), work_of(whole, {}))
    stops = iter([False] * 12 + [True] * 100)
    first = engine(parts, 27, ASHA())
    assert not first.run(Here(score), work_of(parts, {}), stopping=lambda: next(stops))
    assert 0 < len(first.outcomes) < len(one.outcomes)
    with (parts / "journal.jsonl").open("a") as file:
        file.write('{"ask": {"numb')  # as a kill leaves it
    second = engine(parts, 27, ASHA())
    assert second.run(Here(score), work_of(parts, {}))
    assert (parts / "journal.jsonl").read_text() == (whole / "journal.jsonl").read_text()
    check_the_books(second, parts)


@pytest.mark.parametrize("method", [ASHA(), ASHA(sampler="Random")], ids=["TPE", "Random"])
def test_with_a_window_the_search_is_the_same_for_any_number_of_workers(tmp_path, method):
    from toy_search import score

    asked = []
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        folder.mkdir()
        made = engine(folder, 18, method, window=4)
        if workers == 1:
            assert made.run(Here(score), work_of(folder, {}))
        else:
            assert run(folder, made, "toy_search:fragile", workers=workers, kill={"2": 1})
        asked.append([leg.to_json() for leg in made.legs.values()])
    assert asked[0] == asked[1]


def test_a_worker_that_is_stopped_before_it_listens_costs_its_trial_no_attempt(tmp_path):
    made = engine(tmp_path, 3)
    stops = iter([False] * 3 + [True] * 100)
    assert not run(tmp_path, made, "toy_search:deaf", stopping=lambda: next(stops))
    assert made.lost == {}
    records = list(Journal(tmp_path / "journal.jsonl").read())
    assert {kind for record in records for kind in record} == {"ask"}


def test_a_journal_of_another_search_is_refused(tmp_path):
    from toy_search import score

    engine(tmp_path, 4).run(Here(score), work_of(tmp_path, {}))
    other = Random().start(SPACE, shares=(1.0,), trials=4, seed=4)
    with pytest.raises(RunError, match="leg 0 is not the one this recipe"):
        Engine(other, Journal(tmp_path / "journal.jsonl")).replay()


def test_a_journal_of_another_version_is_refused(tmp_path):
    from toy_search import score

    engine(tmp_path, 2).run(Here(score), work_of(tmp_path, {}))
    journal = tmp_path / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"attempts"', '"tries"'))
    with pytest.raises(RunError, match=r"not as this version of regraft writes it \(.*'tries'"):
        engine(tmp_path, 2).replay()


def test_a_line_for_which_there_is_half_the_room_ends_the_search_and_is_not_gone_on_from(tmp_path, monkeypatch):
    journal, write = Journal(tmp_path / "journal.jsonl"), os.write
    journal.write({"ask": {"number": 0}})
    monkeypatch.setattr("regraft.search.journal.os.write", lambda file, line: write(file, line[:5]))
    with pytest.raises(RunError, match="cannot be written"):
        journal.write({"ask": {"number": 1}})
    monkeypatch.undo()
    assert list(journal.read()) == [{"ask": {"number": 0}}]
    journal.write({"ask": {"number": 1}})
    assert list(journal.read()) == [{"ask": {"number": 0}}, {"ask": {"number": 1}}]


def test_no_more_trials_are_begun_when_the_time_is_over(tmp_path):
    from toy_search import slow

    made = engine(tmp_path, 50)
    assert not made.run(Here(slow), work_of(tmp_path, {}), seconds=0.5)
    assert 1 <= len(made.outcomes) < 20
    again = engine(tmp_path, 50)
    assert again.run(Here(slow), work_of(tmp_path, {}), seconds=60)
    assert check_the_books(again, tmp_path) == {"COMPLETE": 50}
