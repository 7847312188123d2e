"""cache: what it prints and with which code it ends."""

from __future__ import annotations

import json


def test_the_cache_is_listed_and_one_kind_of_it_cleared(regraft, table, tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))
    regraft("audit", table, "--quiet")
    listed = json.loads(regraft("cache", "--json").stdout)
    found = {kind["name"]: kind["entries"] for kind in listed["kinds"]}
    assert found["tables"] > 0
    result = regraft("cache", "clear", "tables")
    assert result.exit_code == 0
    assert "removed" in result.stdout
    after = {kind["name"]: kind["entries"] for kind in json.loads(regraft("cache", "--json").stdout)["kinds"]}
    assert after["tables"] == 0
    assert after["hashes"] == found["hashes"]
    assert "memory-mapped tables" in regraft("cache").stdout


def test_a_word_that_is_no_action_ends_with_2(regraft):
    result = regraft("cache", "clera")
    assert result.exit_code == 2
    assert "did you mean 'clear'?" in result.stderr
