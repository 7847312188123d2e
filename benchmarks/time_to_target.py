"""Seconds from the start of a process to a test accuracy: regraft's probe and its main job beside everything people use.

    python benchmarks/time_to_target.py [--sets banking77 sst2] [--arms regraft_probe st_bf16] [--rounds 5] [--slow-rounds 1]

Every run is a fresh process with an empty cache of its own; the arms take turns. Peers that train are judged after each epoch,
and the seconds of an epoch are those of a run that ends there: earlier evaluations are not counted. regraft's seconds count
until the test score stands in the run directory; those of the whole command, report and model folder included, stand beside
them. The file grows run by run, so a run of this script that was stopped goes on where it stood; `--fresh` measures anew.
`make bench-env` first: the peers need .venv-bench.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from harness import ARMS, DATA, MOBILENET, RESULTS, ArmFailed, Store, ratio, rounds, run_arm, say, summary

TARGETS = {"banking77": [0.930, 0.935], "sst2": [0.83], "sign_digits": [0.94], "cifar10_jpg": [0.55]}
TEXT_EPOCHS = {"banking77": "5", "sst2": "3"}
IMAGE_EPOCHS = "15"
REGRAFT = {
    "regraft_probe": ["--strategy", "probe"],
    "regraft_last": ["--strategy", "probe", "--set", "probe.depths=last"],
    "regraft_adapt": [],
}
BUDGETS = {"sst2": "2m", "sign_digits": "2m", "cifar10_jpg": "2m", "banking77": "3m"}
EXTRA = {"cifar10_jpg": ["--set", "train.flip=true"]}  # pictures whose class survives being mirrored
SLOW = ("regraft_adapt", "hf_tuned", "hand_loop", "lightning", "fastai")
GOALS = (  # our arm, the peer's, and what their ratio may be at most
    ("banking77", "regraft_probe", "st_fp32", 0.45),
    ("banking77", "regraft_last", "st_fp32", 0.35),
    ("banking77", "regraft_probe", "st_bf16", 0.45),
    ("banking77", "regraft_last", "st_bf16", 0.35),
    ("banking77", "regraft_probe", "hf_tuned", 1 / 15),
)


def arms_of(name: str) -> dict[str, list[str]]:
    """The arms of a set: what follows the interpreter."""
    epochs = TEXT_EPOCHS.get(name, IMAGE_EPOCHS)
    if name in TEXT_EPOCHS:
        st = [
            str(ARMS / "st_sklearn.py"),
            name,
            "--batch",
            "32",
            "--inverse-penalty",
            "10" if name == "banking77" else "1",
        ]
        training = [name, "--epochs", epochs, "--rate", "3e-4" if name == "banking77" else "1e-4"]
        peers = {
            "st_bf16": [*st, "--dtype", "bfloat16"],
            "st_fp32": [*st, "--dtype", "float32"],
            "hand_probe": [str(ARMS / "hand_probe.py"), name],
        }
    else:
        training = [name, "--epochs", epochs, "--rate", "5e-3", "--precision", "fp32"]
        peers = {}
    peers |= {
        "hf_tuned": [str(ARMS / "hf_trainer.py"), *training],
        "hand_loop": [str(ARMS / "hand_loop.py"), *training],
        "lightning": [str(ARMS / "lightning_loop.py"), *training],
        "fastai": [str(ARMS / "fastai_loop.py"), *training],
    }
    ours = (
        ["regraft_probe", "regraft_last", "regraft_adapt"]
        if name in TEXT_EPOCHS
        else ["regraft_probe", "regraft_adapt"]
    )
    return {arm: [] for arm in ours} | peers


def regraft_command(name: str, arm: str, out: Path, rows: int | None) -> list[str]:
    """`adapt ...` for a set."""
    model = str(MOBILENET) if name not in TEXT_EPOCHS else "minilm"
    limit = [] if rows is None else ["--limit", str(rows)]
    given = ["adapt", str(DATA / name), "--model", model, "--budget", BUDGETS[name], "--out", str(out), "--quiet"]
    return [*given, *REGRAFT[arm], *EXTRA.get(name, []), *limit]


def run_regraft(name: str, arm: str, rows: int | None) -> dict[str, Any]:
    """One command with an empty cache: seconds until the score stands, of the whole command, and of each phase."""
    scratch = Path(tempfile.mkdtemp(prefix="bench-regraft-"))
    try:
        out = scratch / "run"
        own = {"REGRAFT_CACHE": str(scratch / "cache")}
        begun_at = (scratch / "begin").touch() or (scratch / "begin").stat().st_mtime
        found = run_arm(["-m", "regraft", *regraft_command(name, arm, out, rows)], environment=own)
        metrics = json.loads((out / "metrics.json").read_text())
        ledger = json.loads((out / "ledger.json").read_text())
        return {
            "seconds": round((out / "phases" / "evaluate.json").stat().st_mtime - begun_at, 3),
            "accuracy": metrics["final"]["test"]["accuracy"]["value"],
            "winner": metrics["winner"],
            "phases": {line["phase"]: line["seconds"] for line in ledger},
            **{key: found[key] for key in ("wall", "cpu")},
        }
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def run(name: str, arm: str, rows: int | None) -> dict[str, Any]:
    """One run of an arm."""
    if arm in REGRAFT:
        return run_regraft(name, arm, rows)
    limit = [] if rows is None else ["--rows", str(rows)]
    found = run_arm(["-W", "ignore", *arms_of(name)[arm], *limit])
    return {key: value for key, value in found.items() if key != "peak_bytes"}  # peak_memory.py has that


def breakdown(name: str, rows: int | None) -> dict[str, float]:
    """Where the seconds of `regraft_probe` go: importing, preparing, audit, reading, fitting, and each later phase."""
    scratch = Path(tempfile.mkdtemp(prefix="bench-regraft-"))
    try:
        out = scratch / "run"
        command = [part for part in regraft_command(name, "regraft_probe", out, rows) if part != "--quiet"]
        script = [ARMS / "regraft_traced.py", *command]
        found = run_arm(script, environment={"REGRAFT_CACHE": str(scratch / "cache")})
        ledger = {line["phase"]: line["seconds"] for line in json.loads((out / "ledger.json").read_text())}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    stamps = found["stamps"]
    imported = next(at for at, kind, _ in stamps if kind == "imported")
    begun = {label: at for at, kind, label in stamps if kind == "phase"}
    opened: dict[str, float] = {}
    reading = 0.0
    for at, kind, label in stamps:
        if kind == "begin":
            opened[label] = at
        elif kind == "end" and label.startswith("reading"):
            reading += at - opened[label]
    end = stamps[-1][0]
    parts = {
        "importing": imported,
        "data and model opened": begun["audit"] - imported,
        "audit": ledger["audit"],
        "precision and budget measured": begun["probe"] - begun["audit"] - ledger["audit"],
        "probe: reading": reading,
        "probe: tokenising and fitting": ledger["probe"] - reading,
    } | {phase: seconds for phase, seconds in ledger.items() if phase not in ("audit", "probe")}
    parts["between phases, and the exit"] = found["wall"] - sum(parts.values())
    return {part: round(seconds, 3) for part, seconds in parts.items()} | {"all": round(max(found["wall"], end), 3)}


# ---- what it comes to


def to_target(one: dict[str, Any], target: float) -> float | None:
    """Seconds of a run until an accuracy was there; None if it never was."""
    if "epochs" in one:
        return next((epoch["seconds"] for epoch in one["epochs"] if epoch["accuracy"] >= target), None)
    return one["seconds"] if one["accuracy"] >= target else None


def found_of(name: str, store: Store) -> dict[str, Any]:
    """For each arm of a set: its best accuracy, the seconds to it and to each target."""
    out: dict[str, Any] = {}
    for arm in arms_of(name):
        runs = store.runs.get(f"{name}/{arm}", [])
        if not runs:
            continue
        reached = {target: [to_target(one, target) for one in runs] for target in TARGETS[name]}
        out[arm] = {
            "accuracy": round(statistics.median(one["accuracy"] for one in runs), 4),
            "seconds": summary([one["seconds"] for one in runs], digits=2),
            "wall": summary([one["wall"] for one in runs], digits=2),
            "to_target": {
                str(target): summary([t for t in times if t is not None], digits=2)
                if all(t is not None for t in times)
                else None
                for target, times in reached.items()
            },
        }
    return out


def goals(store: Store) -> list[dict[str, Any]]:
    """Each goal with what was measured, where both arms have run."""
    out = []
    for name, ours, theirs, most in GOALS:
        times = [store.values(f"{name}/{arm}", "seconds") for arm in (ours, theirs)]
        if all(times):
            if len(times[1]) < len(times[0]):  # the peer ran less often
                times[1] = [statistics.median(times[1])] * len(times[0])
            found = ratio(*times)
            out.append(
                {
                    "set": name,
                    "ours": ours,
                    "peer": theirs,
                    "goal": round(most, 4),
                    **found,
                    "met": found["median"] <= most,
                }
            )
    return out


def main() -> None:
    """Measure what is asked for and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--arms", nargs="+", help="default: all of the set")
    parser.add_argument("--rounds", type=int, default=5, help="of the arms that do not train an encoder")
    parser.add_argument("--slow-rounds", type=int, default=1, help="of those that do")
    parser.add_argument("--fresh", action="store_true", help="forget the runs there are of what is asked for")
    parser.add_argument("--no-parts", action="store_true", help="leave out the floor and the breakdown")
    parser.add_argument("--quick", action="store_true", help="200 rows, one round: does it run?")
    parser.add_argument("--out", type=Path, default=RESULTS / "time_to_target.json")
    options = parser.parse_args()
    rows = 200 if options.quick else None
    often, seldom = (1, 1) if options.quick else (options.rounds, options.slow_rounds)
    if options.quick and options.out == RESULTS / "time_to_target.json":
        options.out = Path(tempfile.gettempdir()) / "time_to_target_quick.json"
    store = Store(options.out, settings={"targets": TARGETS, "budgets": BUDGETS, "rows": rows or "all"})
    for name in options.sets:
        arms = [arm for arm in arms_of(name) if options.arms is None or arm in options.arms]
        wanted = {f"{name}/{arm}": seldom if arm in SLOW else often for arm in arms}
        if options.fresh:
            store.forget(list(wanted))
        for key in rounds(wanted, store):
            try:
                one = run(name, key.partition("/")[2], rows)
            except ArmFailed as error:
                say(f"{key} failed: {error}")
                continue
            store.add(key, one)
            say(f"{key}: accuracy {one['accuracy']:.4f} at {one['seconds']:.1f} s, {one['wall']:.1f} s in all")
            store.write(found={each: found_of(each, store) for each in TARGETS}, goals=goals(store))
        if not options.no_parts:
            parts = store.content.setdefault("parts", {})
            parts[name] = parts_of(name, rows)
            store.write(parts=parts)
    for goal in goals(store):
        said = f"{goal['median']:.3f} ({goal['low']:.3f} to {goal['high']:.3f}), goal {goal['goal']:.3f}"
        say(f"{goal['set']}: {goal['ours']} / {goal['peer']} = {said}: {'met' if goal['met'] else 'NOT met'}")


def parts_of(name: str, rows: int | None) -> dict[str, Any]:
    """The floor of the features and where regraft's seconds go."""
    limit = [] if rows is None else ["--rows", str(rows)]
    floor = run_arm(["-W", "ignore", ARMS / "floor.py", name, *limit])
    parts = breakdown(name, rows)
    say(f"{name}: floor {floor['seconds']['bf16']} s; " + ", ".join(f"{part} {s:.1f}" for part, s in parts.items()))
    return {
        "floor": {key: floor[key] for key in ("rows", "flops", "mm_flops_per_second", "seconds")},
        "breakdown": parts,
    }


if __name__ == "__main__":
    main()
