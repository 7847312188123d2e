"""Kills, resumes and flipped bits: the same tests on regraft, the Trainer of transformers, and Lightning, side by side.

    python benchmarks/reliability.py [--kills 30] [--flips 100] [--quick] [--fresh]

Every arm trains the same kind of network on the same digits (an MLP with dropout, AdamW, batches of 16) and is resumed as its
documentation says: `regraft resume`, `resume_from_checkpoint=get_last_checkpoint(...)`, `fit(ckpt_path="last")`.

- kills: SIGKILL at a random instant of a random save, with a save at every step, then the same call again;
- resumes: stopped after a checkpoint at the end of an epoch and within one, batches made in turn or by two workers (in regraft a
  thread), with dropout alone and with random augmentation: are the final weights those of the run that was not stopped?
- flips: one random bit of the newest checkpoint; detected, without effect, or silently other weights.

Counts, not times: a busy machine does not change what they say.
"""

from __future__ import annotations

import argparse
from typing import Any

from harness import ARMS, RESULTS, ArmFailed, Store, run_arm, say

WAYS = ("regraft", "hf", "lightning")
TESTS = ("kills", "resumes", "flips")


def conclude(store: Store) -> dict[str, Any]:
    """The last run of each test of each arm."""
    return {
        test: {way: store.runs[f"{test}, {way}"][-1] for way in WAYS if f"{test}, {way}" in store.runs}
        for test in TESTS
    }


def measure(store: Store, test: str, way: str, count: int) -> None:
    """One test of one arm, kept at once."""
    try:
        found = run_arm(
            [ARMS / f"reliability_{way}.py", test, "--count", str(count)], environment={"OMP_NUM_THREADS": "1"}
        )
    except ArmFailed as error:
        say(f"{test}, {way}: {error}")
        return
    kept = {key: value for key, value in found.items() if key not in ("wall", "cpu", "peak_bytes")}
    store.add(f"{test}, {way}", kept | {"count": count})
    shown = {key: value for key, value in kept.items() if key not in ("by_case", "example")}
    say(f"{test}, {way}: {shown}")


def main() -> None:
    """Run what is missing, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--flips", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="a few of each: does it run?")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    options = parser.parse_args()
    name = "reliability_quick.json" if options.quick else "reliability.json"
    counts = {"kills": 2, "resumes": 1, "flips": 2} if options.quick else vars(options) | {"resumes": 1}
    store = Store(RESULTS / name, settings={test: counts[test] for test in TESTS})
    keys = [f"{test}, {way}" for test in TESTS for way in WAYS]
    if options.fresh:
        store.forget(keys)
    for key in keys:
        test, way = key.split(", ")
        if not any(run["count"] == counts[test] for run in store.runs.get(key, [])):
            measure(store, test, way, counts[test])
    store.write(found=conclude(store))
    say(f"written to {store.path}")


if __name__ == "__main__":
    main()
