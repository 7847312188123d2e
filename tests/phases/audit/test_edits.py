"""The cheap bound on edits never rules out what the full count would let pass."""

from __future__ import annotations

import random
import re

from regraft.phases.audit.edits import SAME, at_least, word_edits

WORDS = re.findall(
    r"\S+",
    "my card has not arrived yet please help why was the top up declined today transfer transfers cash machine "
    "cashmachine 2 3 a an is exchange exchnage rate rates account balance balanse",
)


def changed(words: list[str], pick: random.Random) -> list[str]:
    """The words after a few edits of every kind."""
    words = list(words)
    for _ in range(pick.randint(0, 4)):
        at = pick.randrange(len(words))
        kind = pick.choice(["drop", "add", "swap", "other", "typo", "join"])
        if kind == "drop" and len(words) > 2:
            del words[at]
        elif kind == "add":
            words.insert(at, pick.choice(WORDS))
        elif kind == "swap" and at:
            words[at - 1], words[at] = words[at], words[at - 1]
        elif kind == "other":
            words[at] = pick.choice(WORDS)
        elif kind == "typo" and len(words[at]) > 3:
            words[at] = words[at][:-2] + words[at][-1]
        elif kind == "join" and at and len(words) > 2:
            words[at - 1 : at + 1] = [words[at - 1] + words[at]]
    return words


def test_the_bound_is_never_above_the_cost():
    pick = random.Random(0)
    near = 0
    for _ in range(20_000):
        one = [pick.choice(WORDS) for _ in range(pick.randint(2, 14))]
        two = changed(one, pick)
        limit = SAME * max(len(one), len(two))
        cost = word_edits(one, two)
        if cost <= limit:  # beyond that `word_edits` stops early
            near += 1
            assert at_least(one, two, limit) <= cost + 1e-9, (one, two)
    assert near > 2000
