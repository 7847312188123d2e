"""Tables of what was claimed of techniques and what came of it: claims, mixed precision, pairs, the race then and now."""

from __future__ import annotations

import json
from collections.abc import Callable

from tables import RESULTS, UNMEASURED, number, results, table


def claims() -> str:
    """What was claimed of techniques, measured again: a line a claim and setting."""
    files = sorted((RESULTS / "claims").glob("*.json"))
    lines = [line for file in files for line in json.loads(file.read_text(encoding="utf-8")).get("claims", ())]
    if not lines:
        return UNMEASURED
    rows = []
    for line in lines:
        arms = [f"{line[name]}: {number(line[f'of_{name}'], 4)}" for name in ("better", "than")]
        interval = f"{line['difference']:+.4f} ({line['low']:+.4f} to {line['high']:+.4f})"
        rows.append([line["claim"], line["source"], line["on"], line["metric"], *arms, interval, line["verdict"]])
    header = ["claim", "source", "on", "metric", "this", "against", "difference", "verdict"]
    return table(header, rows, numbers_from=8)


def toolbox_race() -> str:
    """The race of today against that of the foundation."""
    found = results("toolbox_race")
    if found is None:
        return UNMEASURED
    rows = [
        [
            line["data"],
            str(line["seeds"]),
            *(number(line[arm], 4) for arm in ("foundation", "toolbox")),
            f"{line['difference']:+.4f}",
            ", ".join(line["winners"]["foundation"]),
            ", ".join(line["winners"]["toolbox"]),
        ]
        for line in found["found"]
    ]
    header = ["data", "seeds", "foundation", "toolbox", "difference", "won then", "wins now"]
    return table(header, rows, numbers_from=1)


def pairs() -> str:
    """Pairs of techniques by what comes of them."""
    found = results("pairs")
    if found is None:
        return UNMEASURED
    rows = [[outcome, number(count, 0)] for outcome, count in found["counts"].items()]
    return table([f"pairs of {found['techniques']} techniques", number(found["pairs"], 0)], rows, numbers_from=1)


def mixed_precision() -> str:
    """The speed and memory of lower precisions beside what is published."""
    found = results("claims/mixed_precision")
    if found is None:
        return UNMEASURED
    rows = []
    for precision, one in found["found"].items():
        cells = [
            f"{number(one[name]['median'], 2)} ({number(one[name]['low'], 2)} to {number(one[name]['high'], 2)})"
            for name in ("times_as_fast", "share_of_memory")
        ]
        rows.append([precision, *cells, one["speed"], one["memory"]])
    header = ["precision", "times as fast as fp32", "share of its memory", "1.3 to 2 times as fast", "less memory"]
    return table(header, rows, numbers_from=5)


CLAIM_TABLES: dict[str, Callable[[], str]] = {
    "claims": claims,
    "pairs": pairs,
    "toolbox_race": toolbox_race,
    "mixed_precision": mixed_precision,
}
