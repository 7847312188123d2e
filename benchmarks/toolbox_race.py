"""The race with the toolbox of today against the race of the foundation: the main job on five data sets, same seeds and budget.

    python benchmarks/toolbox_race.py [--seeds 1] [--budget 3m] [--only SET ...] [--foundation COMMIT]

The foundation is the commit before the toolbox, checked out beside the repository and run by the same interpreter. Each run is a
fresh `regraft adapt`; the two take turns. The figure is that of the winner on the test rows, scored once. Data comes from
`REGRAFT_DATA`. Result: benchmarks/results/toolbox_race.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from harness import DATA, MOBILENET, RESULTS, ROOT, Store, rounds, run_arm, say

FOUNDATION = "5e03fc7"
SETS = {
    "banking77": ["--model", "minilm"],
    "sst2": ["--model", "minilm"],
    "sign_digits": ["--model", str(MOBILENET)],
    "cifar10_jpg": ["--model", str(MOBILENET), "--set", "train.flip=true"],
    "fashion_mnist_900": ["--model", str(MOBILENET)],
}
ARMS = ("foundation", "toolbox")


def main() -> None:
    """Measure, and write the result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--budget", default="3m")
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--foundation", default=FOUNDATION, help="a commit")
    parser.add_argument("--out", type=Path, default=RESULTS / "toolbox_race.json")
    options = parser.parse_args()
    store = Store(options.out, settings={"budget": options.budget, "foundation": options.foundation})
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "foundation"
        subprocess.run(
            ["git", "worktree", "add", "--detach", "--quiet", before, options.foundation], cwd=ROOT, check=True
        )
        try:
            code = {"foundation": before, "toolbox": ROOT}
            keys = {f"{name}/{arm}": options.seeds for name in options.only for arm in ARMS}
            for number, key in enumerate(rounds(keys, store)):
                name, arm = key.split("/")
                seed = len(store.runs.get(key, []))
                store.add(key, adapted(name, code[arm], seed, options.budget, Path(folder) / str(number)))
                say(f"{key}, seed {seed}: {store.runs[key][-1]}")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before], cwd=ROOT, check=True)
    store.write(found=[compared(name, store) for name in SETS if f"{name}/toolbox" in store.runs])
    for line in store.content["found"]:
        say(f"{line['data']}: {line['foundation']:.4f} -> {line['toolbox']:.4f} ({line['difference']:+.4f})")


def adapted(name: str, code: Path, seed: int, budget: str, out: Path) -> dict[str, Any]:
    """One run of the command by a version of the code, with a cache of its own."""
    command = [
        "-m",
        "regraft",
        "adapt",
        DATA / name,
        *SETS[name],
        "--budget",
        budget,
        "--seed",
        str(seed),
        "--out",
        out,
        "--quiet",
    ]
    own = {
        "PYTHONPATH": str(code),
        "PYTHONSAFEPATH": "1",
        "REGRAFT_CACHE": f"{out}-cache",
    }  # not the code of this folder
    run = run_arm(command, environment=own)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    entry = metrics["final"]["test"][metrics["primary"]]
    valid = metrics["final"].get("valid", {}).get(metrics["primary"], {})
    return {
        "metric": metrics["primary"], "value": entry["value"], "low": entry["low"], "high": entry["high"],
        "valid": valid.get("value"), "winner": metrics["winner"], "wall": run["wall"], "seed": seed,
        "tried": {each["name"]: each["valid"]["score"] for each in metrics["candidates"]},
    }  # fmt: skip


def compared(name: str, store: Store) -> dict[str, Any]:
    """Both arms on one data set, over the seeds that both have."""
    ours, theirs = (store.values(f"{name}/{arm}", "value") for arm in ("toolbox", "foundation"))
    pairs = list(zip(ours, theirs, strict=False))
    last = {arm: [run["winner"] for run in store.runs[f"{name}/{arm}"]] for arm in ARMS}
    means = [statistics.mean(column) for column in zip(*pairs, strict=True)]
    return {
        "data": name, "seeds": len(pairs), "toolbox": means[0], "foundation": means[1], "difference": means[0] - means[1],
        "winners": last, "better_or_equal": means[0] >= means[1],
    }  # fmt: skip


if __name__ == "__main__":
    main()
