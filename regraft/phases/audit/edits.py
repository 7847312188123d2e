"""When two texts count as the same text edited: a few words of a hundred changed, typos and polite words counting less."""

from __future__ import annotations

from collections.abc import Sequence

SAME = 0.10  # edits per word of the longer text up to which two texts are near duplicates
MOST_WORDS = 150  # of each text that are aligned; longer ones are judged by their shingles alone
TYPO, SWAP, FILLER, TAIL = (
    0.4,
    0.5,
    0.25,
    0.5,
)  # cost of an edit; an ordinary inserted, deleted or replaced word costs 1
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


def is_near(first: str, second: str, similarity: float) -> bool:
    """Whether two normalised texts are one text with small edits, given the Jaccard similarity of their shingles."""
    one, two = first.split(), second.split()
    if max(len(one), len(two)) > MOST_WORDS:
        return similarity >= 0.85
    if not one or not two or min(len(one), len(two)) < 2:
        return len(first) >= 8 and len(one) == len(two) and is_typo(first, second)
    cost = word_edits(one, two)
    longest = max(len(one), len(two))
    return cost <= SAME * longest + 1e-9


def word_edits(one: Sequence[str], two: Sequence[str]) -> float:
    """Smallest total cost of edits from one list of words to the other (Damerau-Levenshtein, restricted transpositions)."""
    rows, columns = len(one), len(two)
    limit = SAME * max(rows, columns) + 1  # beyond it the exact value does not matter
    before: list[float] = []
    last = [0.0]
    for word in two:
        last.append(last[-1] + _gap(word, 0, rows))
    for i in range(1, rows + 1):
        word = one[i - 1]
        row = [last[0] + _gap(word, 0, columns)]
        for j in range(1, columns + 1):
            other = two[j - 1]
            best = last[j - 1] + (0.0 if word == other else _replace(word, other))
            best = min(best, last[j] + _gap(word, j, columns), row[j - 1] + _gap(other, i, rows))
            if i > 1 and j > 1 and word == two[j - 2] and one[i - 2] == other and word != other:
                best = min(best, before[j - 2] + SWAP)
            if i > 1 and one[i - 2] + word == other:  # a space too many or too few
                best = min(best, before[j - 1] + TYPO)
            if j > 1 and two[j - 2] + other == word:
                best = min(best, last[j - 2] + TYPO)
            row.append(best)
        if min(row) > limit:
            return limit
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
    if max(len(left), len(right)) <= 1:
        return True
    return len(left) == len(right) == 2 and left == right[::-1]


def _replace(word: str, other: str) -> float:
    return TYPO if is_typo(word, other) else 1.0


def _gap(word: str, place: int, length: int) -> float:
    """Cost of a word that only one text has, at a place in the other text of this many words."""
    if word in FILLERS:
        return FILLER
    return TAIL if place == length else 1.0
