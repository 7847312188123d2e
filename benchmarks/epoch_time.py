"""Seconds of one epoch of full fine-tuning: regraft beside a loop by hand, HF Trainer as it comes and tuned, and Lightning.

    python benchmarks/epoch_time.py [--rows 2500] [--rounds 5]

MiniLM on that many random rows of banking77, batch 32, every arm a fresh process, in turn; the clock runs from the end of step 5
for as many steps as an epoch has. The seed changes from round to round, the same for all arms. Quality first: loss and accuracy
on 1,000 test rows after the epoch stand beside the seconds, and regraft's mean loss must lie within three standard errors of
the hand-written loop's.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

from harness import ARMS, RESULTS, ArmFailed, Store, ratio, rounds, run_arm, say, summary

WAYS = ("hand", "regraft", "hf_default", "hf_tuned", "lightning")
GOALS = {"hf_default": 0.22, "hf_tuned": 0.8, "hand": 1.03}  # regraft's seconds over the arm's, at most


def quality(store: Store) -> dict[str, Any]:
    """Is the difference of the mean losses of regraft and the hand-written loop within three standard errors?"""
    ours, hand = (store.values(way, "loss") for way in ("regraft", "hand"))
    if min(len(ours), len(hand)) < 2:
        return {"passed": None}
    difference = statistics.mean(ours) - statistics.mean(hand)
    error = math.sqrt(statistics.variance(ours) / len(ours) + statistics.variance(hand) / len(hand))
    return {"difference": round(difference, 4), "standard_error": round(error, 4), "passed": difference <= 3 * error}


def conclude(store: Store) -> dict[str, Any]:
    """Seconds, loss, accuracy and peak memory of each arm; regraft's seconds over each of the others'."""
    arms = {
        way: {
            "seconds": summary(store.values(way, "seconds"), digits=2),
            "loss": summary(store.values(way, "loss")),
            "accuracy": summary(store.values(way, "accuracy")),
            "peak_gib": round(statistics.median(store.values(way, "peak_bytes")) / 2**30, 2),
        }
        for way in WAYS
        if way in store.runs
    }
    ours = store.values("regraft", "seconds")
    ratios = {
        way: ratio(ours, store.values(way, "seconds")) | {"goal": GOALS.get(way)}
        for way in arms
        if way != "regraft" and ours
    }
    return {"arms": arms, "regraft_over": ratios, "quality": quality(store)}


def main() -> None:
    """Measure, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--arms", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--fresh", action="store_true", help="forget the runs there are of these arms")
    parser.add_argument("--out", type=Path, default=RESULTS / "epoch_time.json")
    options = parser.parse_args()
    store = Store(options.out, settings={"rows": options.rows, "batch": 32, "data": "banking77", "model": "MiniLM-L6"})
    if options.fresh:
        store.forget(options.arms)
    for way in rounds(dict.fromkeys(options.arms, options.rounds), store):
        seed = len(store.runs.get(way, []))
        script = ["-W", "ignore", ARMS / "epoch.py", way, "--rows", str(options.rows), "--seed", str(seed)]
        try:
            one = run_arm(script)
        except ArmFailed as error:
            say(f"{way} failed: {error}")
            continue
        store.add(way, one)
        store.write(found=conclude(store))
        say(f"{way}: {one['seconds']:.1f} s, loss {one['loss']:.3f}, accuracy {one['accuracy']:.3f}")
    found = conclude(store)
    say(f"quality: {found['quality']}")
    for way, over in found["regraft_over"].items():
        goal = (
            ""
            if over["goal"] is None
            else f", goal {over['goal']}: {'met' if over['median'] <= over['goal'] else 'NOT met'}"
        )
        say(f"regraft / {way} = {over['median']:.3f} ({over['low']:.3f} to {over['high']:.3f}){goal}")


if __name__ == "__main__":
    main()
