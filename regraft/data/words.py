"""Words and sentences of a text changed at random: pure functions of (text, rates, random numbers)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from random import Random

SENTENCE = re.compile(r"(?<=[.!?…。！？])\s+")
CORE = re.compile(r"^(\W*)(.*?)(\W*)$", re.DOTALL)  # a word between its punctuation

# English words that carry the grammar or turn the sense round; a synonym of one seldom fits
_FUNCTION_WORDS = """
a about after all also am an and any are as at be because been before but by can cannot could did do does don't for from had has
have he her his how i if in into is isn't it its just may me might more most must my never no nor not of off on only or our out
over she should so some than that the their them then there these they this those to too under until up us very was we were what
when where which who whom whose why will with without won't would you your
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


def sentences(text: str) -> list[str]:
    """The sentences of a text, cut after . ! ? and their like where a space follows."""
    return [part for part in SENTENCE.split(text.strip()) if part]


def count(rate: float, units: int, random: Random) -> int:
    """A whole number whose mean is `rate` times `units`."""
    return int(rate * units + random.random())


def edited(
    units: Sequence[str],
    pool: Sequence[str],
    random: Random,
    *,
    insert: float = 0.0,
    delete: float = 0.0,
    swap: float = 0.0,
    replace: float = 0.0,
) -> list[str]:
    """Words or sentences after random replacement, insertion, swapping and deletion, in this order; never none.

    Wei and Zou, 2019, arXiv:1901.11196, section 2: rates are shares of the units; each unit is deleted with probability `delete`.
    The paper replaces by and inserts synonyms, here it is units of `pool`, and nothing where that is empty.
    """
    out = list(units)
    if not out:
        return out
    if pool:
        for at in random.sample(range(len(out)), min(len(out), count(replace, len(units), random))):
            out[at] = random.choice(pool)
        for _ in range(count(insert, len(units), random)):
            out.insert(random.randint(0, len(out)), random.choice(pool))
    for _ in range(count(swap, len(units), random) if len(out) > 1 else 0):
        one, other = random.sample(range(len(out)), 2)
        out[one], out[other] = out[other], out[one]
    kept = [unit for unit in out if random.random() >= delete]
    return kept or [random.choice(out)]


def core(word: str) -> str:
    """A word without the punctuation around it, in lower case."""
    found = CORE.match(word)
    return found[2].lower() if found else word.lower()


def replaced_by(word: str, other: str) -> str:
    """`other` in the place of the word: between its punctuation, with a capital where the word had one."""
    found = CORE.match(word)
    before, inner, after = found.groups() if found else ("", word, "")
    if inner[:1].isupper():
        other = other[:1].upper() + other[1:]
    return before + other + after


def with_synonyms(
    text: str, random: Random, *, share: float, synonyms: Callable[[str], Sequence[str]], kept: frozenset[str]
) -> str:
    """The text with `share` of its words replaced by a synonym each, as far as words have one; the spaces stay.

    Args:
        text: any.
        random: draws words and synonyms.
        share: of all words, on average.
        synonyms: those of a word in lower case; none where it has none.
        kept: words in lower case that are never replaced.
    """
    parts = re.split(r"(\s+)", text)
    places = [i for i in range(0, len(parts), 2) if parts[i]]
    wanted = count(share, len(places), random)
    random.shuffle(places)
    for place in places:
        if wanted == 0:
            break
        word = core(parts[place])
        found = [] if word in kept or not word else [one for one in synonyms(word) if one.lower() != word]
        if found:
            parts[place] = replaced_by(parts[place], random.choice(found))
            wanted -= 1
    return "".join(parts)


def flat(columns: Mapping[str, Sequence[str]]) -> list[str]:
    """All texts of all columns."""
    return [text for texts in columns.values() for text in texts]
