"""How many pairs of techniques compose, and how many are refused and why: the pairs of tests/techniques/test_pairs.py, counted.

    python benchmarks/pairs.py

Each pair is compiled on the toy that both can train, and its stages are prepared; the tests also train those that compose and
compare the weights. A refusal counts under what it says: that one would have no effect, that two decide the same thing, or that
something the technique needs is not there. Result: benchmarks/results/pairs.json.
"""

from __future__ import annotations

import json
import sys
from collections import Counter

from harness import RESULTS, ROOT

sys.path.insert(0, str(ROOT / "tests"))


def kind(sentence: str | None) -> str:
    """What a refusal says, in a word or two."""
    if sentence is None:
        return "composes"
    if "no effect" in sentence:
        return "refused: one would have no effect"
    if "both provide" in sentence:
        return "refused: both decide the same"
    return "refused: something that one needs is not there beside the other"


def main() -> None:
    """Count, and write the result file."""
    from techniques.cases import CASES
    from techniques.test_pairs import PAIRS, refusal, shared_toy

    counts: Counter[str] = Counter()
    refused: dict[str, str] = {}
    for first, second in PAIRS:
        one, other = CASES[first], CASES[second]
        said = refusal(one, other, shared_toy(one, other))
        counts[kind(said)] += 1
        if said is not None:
            refused[f"{first} + {second}"] = said
    found = {"techniques": len(CASES), "pairs": len(PAIRS), "counts": dict(counts.most_common()), "refused": refused}
    (RESULTS / "pairs.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps({key: found[key] for key in ("techniques", "pairs", "counts")}, indent=1))


if __name__ == "__main__":
    main()
