"""The main job on real data sets, one command each: test metrics, the probe against the winner, calibration, seconds.

    python benchmarks/main_job.py [NAME ...] [--out benchmarks/results/main_job.json] [--runs runs/main_job]

Data comes from `REGRAFT_DATA` (default: ../shared/data beside the repository). Each row is a fresh process, one after another, so
its seconds are those of the command, start-up included. The file is brought up to date row by row.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("REGRAFT_DATA", ROOT.parent / "shared" / "data"))
MOBILENET = str(DATA / "weights_mobilenetv1_025_vww")
ROWS: dict[str, list[str]] = {
    "banking77": ["banking77", "--model", "minilm", "--budget", "3m"],
    "banking77, probe alone": ["banking77", "--model", "minilm", "--budget", "3m", "--strategy", "probe"],
    "sst2": ["sst2", "--model", "minilm", "--budget", "3m"],
    "ag_news": ["ag_news", "--model", "minilm", "--budget", "3m"],
    "sick_pairs, entailment": ["sick_pairs", "--model", "minilm", "--budget", "3m", "--label", "entailment_judgment"],
    "sick_pairs, relatedness": ["sick_pairs", "--model", "minilm", "--budget", "3m", "--label", "relatedness_score"],
    "sign_digits": ["sign_digits", "--model", MOBILENET, "--budget", "3m"],
    "cifar10_jpg": ["cifar10_jpg", "--model", MOBILENET, "--budget", "3m", "--set", "train.flip=true"],
    "fashion_mnist_900": ["fashion_mnist_900", "--model", MOBILENET, "--budget", "3m"],
    "adult": ["adult", "--budget", "1m"],
    "wine_quality_red": ["wine_quality_red", "--budget", "1m", "--task", "regression"],
}


REPEATS = {"banking77, probe alone": 5}  # runs of a row whose seconds are a claim; the median counts


def measure(name: str, options: list[str], runs: Path) -> dict[str, object]:
    """One row: run the command, read the numbers from the files it leaves."""
    out = runs / name.replace(", ", "-").replace(" ", "_")
    command = [
        sys.executable,
        "-m",
        "regraft",
        "adapt",
        str(DATA / options[0]),
        *options[1:],
        "--out",
        str(out),
        "--quiet",
    ]
    times: list[float] = []
    for _ in range(REPEATS.get(name, 1)):
        shutil.rmtree(out, ignore_errors=True)
        begin = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        times.append(round(time.perf_counter() - begin, 1))
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr.strip()}")
    metrics = json.loads((out / "metrics.json").read_text())
    ledger = {line["phase"]: line for line in json.loads((out / "ledger.json").read_text())}
    primary = metrics["primary"]
    entries = {key: metrics[key]["test"][primary] for key in ("final", "probe", "last_layer_probe")}
    model = Path(options[options.index("--model") + 1]).name if "--model" in options else "WideDeep network"
    return {
        "data": name,
        "model": model,
        "task": metrics["task"],
        "metric": primary,
        **{key: entry["value"] for key, entry in entries.items()},
        "interval": [entries["final"]["low"], entries["final"]["high"]],
        "winner": metrics["winner"],
        "ece": metrics["final"]["test"].get("ece", {}).get("value"),
        "seconds": statistics.median(times),
        "seconds_of_each_run": times,
        "probe_seconds": ledger["probe"]["seconds"],
        "peak_bytes": max(line["peak_bytes"] for line in ledger.values()),
        "parameters": metrics["size"]["parameters"],
        "command": "regraft adapt "
        + " ".join([options[0], *(Path(o).name if o == MOBILENET else o for o in options[1:])]),
    }


def main() -> None:
    """Run the rows asked for and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *ROWS], default=[])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "main_job.json")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "main_job")
    arguments = parser.parse_args()
    rows = {row["data"]: row for row in json.loads(arguments.out.read_text())["runs"]} if arguments.out.exists() else {}
    for name in arguments.names or ROWS:
        rows[name] = measure(name, ROWS[name], arguments.runs)
        row = rows[name]
        scores = f"{row['metric']} {row['final']:.4f}, probe {row['probe']:.4f}"
        print(f"{name}: {scores}, winner {row['winner']}, {row['seconds']} s", flush=True)
        machine = {
            "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "torch": torch.__version__,
        }
        ordered = [rows[key] for key in ROWS if key in rows]
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"machine": machine, "runs": ordered}, indent=1) + "\n")


if __name__ == "__main__":
    main()
