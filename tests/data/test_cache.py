"""The cache folder: what it holds is counted, cleared by kind and by age, and never larger than it may be."""

from __future__ import annotations

import os
import time

import pytest

from regraft.data.cache import cache_folder, clear, kinds, trim
from regraft.errors import ConfigError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))


def entry(kind: str, name: str, size: int, *, days: float = 0.0) -> None:
    folder = cache_folder(kind) / name
    folder.mkdir()
    (folder / "0.bin").write_bytes(bytes(size))
    then = time.time() - 86_400 * days
    os.utime(folder, (then, then))


def names(kind: str) -> set[str]:
    return {path.name for path in cache_folder(kind).iterdir()}


def test_kinds_count_entries_and_bytes():
    entry("stores", "a", 100)
    entry("stores", "b", 50)
    (cache_folder("hashes") / "c").write_text("12345")
    found = {kind.name: (kind.entries, kind.num_bytes) for kind in kinds()}
    assert found["stores"] == (2, 150)
    assert found["hashes"] == (1, 5)
    assert found["tables"] == (0, 0)


def test_clearing_takes_one_kind_and_what_is_old_and_what_was_never_finished():
    entry("stores", "old", 100, days=10)
    entry("stores", "new", 50)
    entry("stores", "x.part-123", 7, days=10)
    entry("encoded", "other", 3, days=10)
    assert clear("stores", unused_days=5) == (2, 107)
    assert names("stores") == {"new"}
    assert names("encoded") == {"other"}
    assert clear() == (2, 53)


def test_the_eldest_entries_go_when_there_is_no_room(monkeypatch):
    for age, name in enumerate(("newest", "middle", "eldest")):
        entry("stores", name, 400, days=age)
    monkeypatch.setenv("REGRAFT_CACHE_GB", "1e-6")
    trim(cache_folder("stores"))
    assert names("stores") == {"newest", "middle"}


def test_a_kind_that_is_not_there_and_a_limit_that_is_no_number_are_said():
    with pytest.raises(ConfigError, match=r"no kind 'stors'; did you mean 'stores'\?"):
        kinds("stors")


def test_a_limit_that_is_no_number_is_said(monkeypatch):
    monkeypatch.setenv("REGRAFT_CACHE_GB", "lots")
    with pytest.raises(ConfigError, match="must be a number of gigabytes, got 'lots'"):
        trim(cache_folder("stores"))
