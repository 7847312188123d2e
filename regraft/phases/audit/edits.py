"""When two texts count as the same text edited: a few words of a hundred changed, typos and polite words counting less."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

SAME = 0.10  # edits per word of the longer text up to which two texts are near duplicates
MOST_WORDS = 150  # of each text that are aligned; longer ones are judged by their shingles alone
# cost of an edit; a word added or dropped costs 1, so a text of ten words may differ in one
TYPO, SWAP, SMALL, FILLER = 0.4, 0.5, 0.5, 0.25
OTHER = 2.0  # another content word in its place: "dog" for "cat" says something else, unless the text is long
SENSE = 5.0  # a number changed, or a "not" added: never the same text below 50 words
CACHED = 20_000  # texts whose words and digits are remembered
REPLACED = 5  # letters of a word below which one letter replaced makes another word
LEAST = TYPO / 3  # what a word that only one text has costs at least (two words joined to one: three words, one typo)
FILLERS = frozenset(
    [
        "please",
        "thanks",
        "thank",
        "you",
        "thx",
        "hi",
        "hello",
        "hey",
        "dear",
        "ok",
        "okay",
        "well",
        "so",
        "just",
        "really",
        "kindly",
        "pls",
        "plz",
        "sorry",
        "again",
        "now",
        "today",
        "sir",
        "madam",
        "team",
        "everyone",
        "regards",
        "cheers",
        "help",
        "asap",
    ]
)


SMALL_WORDS = frozenset(
    re.findall(r"\w+", "a an the this that these those my your our his her their its is are was were")
)
NEGATIONS = frozenset(
    re.findall(r"\w+", "not no never none nobody nothing neither nor without cannot t")
)  # t: of "don't"


def is_near(first: str, second: str, similarity: float) -> bool:
    """Whether two normalised texts are one text with small edits, given the Jaccard similarity of their shingles."""
    if first == second:
        return True
    one, two = _words(first), _words(second)
    if max(len(one), len(two)) > MOST_WORDS:
        return similarity >= 0.85
    if min(len(one), len(two)) < 2:
        return len(first) >= 8 and len(one) == len(two) and is_typo(first, second)
    limit = SAME * max(len(one), len(two)) + 1e-9
    if limit < SENSE and _digits(first) != _digits(second):
        return False  # every edit that changes a digit costs SENSE; seen at once, for texts from one template
    return at_least(one, two, limit) <= limit and word_edits(one, two) <= limit


@lru_cache(maxsize=CACHED)
def _words(text: str) -> list[str]:
    """The words of a text; a text is looked at in many pairs."""
    return text.split()


@lru_cache(maxsize=CACHED)
def _digits(text: str) -> str:
    """The digits of a text in ascending order."""
    return "".join(sorted(filter(str.isdigit, text)))


def at_least(one: Sequence[str], two: Sequence[str], limit: float) -> float:
    """A cost that `word_edits` cannot fall below, from the words that only one text has; cheap, and enough for most pairs.

    Such a word is dropped, or stands against another one: alone that costs its `_gap`, or half of `OTHER` or `SMALL`. Only
    where a word like it is in the other text can it be less: a typo, or words joined or parted.
    """
    counts = Counter(one)
    counts.subtract(two)
    here = [word for word, count in counts.items() for _ in range(count)]
    there = [word for word, count in counts.items() for _ in range(-count)]
    total = LEAST * (len(here) + len(there))
    if total > limit:
        return total
    for mine, others in ((here, set(two)), (there, set(one))):
        for word in mine:
            if word not in SMALL_WORDS and not any(_alike(word, other) for other in others):
                total += min(_gap(word), OTHER / 2) - LEAST
                if total > limit:
                    return total
    return total


def _alike(word: str, other: str) -> bool:
    """May one be a typo of the other, or the other a part of it or a whole with it?"""
    if abs(len(word) - len(other)) <= 1 and (word[0] == other[0] or word[-1] == other[-1]):
        return True
    short, long = (word, other) if len(word) < len(other) else (other, word)
    return long.startswith(short) or long.endswith(short)


def word_edits(one: Sequence[str], two: Sequence[str]) -> float:
    """Smallest total cost of edits from one list of words to the other (Damerau-Levenshtein, restricted transpositions).

    Beyond SAME edits a word the exact value does not matter, and a value above that limit is returned.
    """
    limit = SAME * max(len(one), len(two)) + 1e-9
    start = 0
    while start < min(len(one), len(two)) and one[start] == two[start]:
        start += 1
    one, two = one[start:], two[start:]
    before: list[float] = []
    last = [0.0]
    for word in two:
        last.append(last[-1] + _gap(word))
    for i in range(1, len(one) + 1):
        word = one[i - 1]
        dropped = _gap(word)
        row = [last[0] + dropped]
        for j in range(1, len(two) + 1):
            other = two[j - 1]
            best = min(
                last[j - 1] + (0.0 if word == other else _replace(word, other)),
                last[j] + dropped,
                row[-1] + _gap(other),
            )
            if i > 1 and j > 1 and word == two[j - 2] and one[i - 2] == other and word != other:
                best = min(best, before[j - 2] + SWAP)
            if i > 1 and one[i - 2] + word == other:  # a space too many or too few
                best = min(best, before[j - 1] + TYPO)
            if j > 1 and two[j - 2] + other == word:
                best = min(best, last[j - 2] + TYPO)
            row.append(best)
        if min(row) > limit and min(last) > limit:
            return min(row)
        before, last = last, row
    return last[-1]


def is_typo(one: str, two: str) -> bool:
    """Whether two words differ by one character added, dropped, replaced or swapped with its neighbour; never by a digit."""
    if abs(len(one) - len(two)) > 1 or max(len(one), len(two)) < 3:
        return False
    start = 0
    while start < min(len(one), len(two)) and one[start] == two[start]:
        start += 1
    end = 0
    while end < min(len(one), len(two)) - start and one[-1 - end] == two[-1 - end]:
        end += 1
    left, right = one[start : len(one) - end], two[start : len(two) - end]
    if any(c.isdigit() for c in left + right):
        return False
    if len(left) == len(right) == 1:
        return len(one) >= REPLACED  # "boy" and "toy" are two words
    if max(len(left), len(right)) <= 1:
        return True
    return len(left) == len(right) == 2 and left == right[::-1]


def _replace(word: str, other: str) -> float:
    """Cost of one word in the place of another one."""
    if abs(len(word) - len(other)) <= 1 and (word[0] == other[0] or word[-1] == other[-1]) and is_typo(word, other):
        return TYPO
    if word in SMALL_WORDS and other in SMALL_WORDS:
        return SMALL
    return SENSE if _turns(word) or _turns(other) else OTHER


def _gap(word: str) -> float:
    """Cost of a word that only one text has."""
    if word in FILLERS:
        return FILLER
    if _turns(word):
        return SENSE
    return SMALL if word in SMALL_WORDS else 1.0


def _turns(word: str) -> bool:
    """Whether a word alone changes what a text says: a negation, or something with a digit."""
    return word in NEGATIONS or (not word.isalpha() and any(c.isdigit() for c in word))
