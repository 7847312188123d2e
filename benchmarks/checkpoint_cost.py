"""What checkpoints cost: training with a save every 50 steps against training without, and the verification at load.

    python benchmarks/checkpoint_cost.py [--rounds 7] [--case NAME] [--quick]

Full fine-tuning of MiniLM (docstrings of the standard library) and a small convolutional network (handwritten digits), both
with AdamW, as `regraft train` runs them: log, progress, checkpoints of the whole state, the estimate of their size and the wait
for the last write included. The two ways take turns in one process; that they end with the same bits is checked in every round.
Beside the ratio, which carries the noise of the machine, stands what a step was kept waiting by saves, measured directly: seconds
within the saving calls. Load: a state of MiniLM's size, verified and loaded, against loaded unverified.
Result: benchmarks/results/checkpoint_cost.json; `--case` measures one of the two and leaves the other's figures there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, THREADS, commit, machine, ratio, say, summary
from safetensors.torch import load_file
from torch import Tensor

from regraft.config.recipe import RecipeSpec, recipe_from_tree
from regraft.core import Run, fit
from regraft.core.checkpoint import Checkpointer, load_newest
from regraft.core.files import sha256
from regraft.core.snapshot import TENSORS, load
from regraft.phases.build import assemble
from regraft.phases.rundir import EventLog
from regraft.phases.training import StepCounter

EVERY = 50
TARGETS = {"slowdown": 1.02, "verification_s_per_gb": 1.0}


def minilm(steps: int) -> RecipeSpec:
    """All weights of MiniLM, on short texts."""
    return recipe_from_tree(
        {
            "data": {"main": {"path": "stdlib-docstrings", "limit": 1500, "limit_valid": 64, "limit_test": 64}},
            "models": {"main": {"name": "minilm", "max_length": 48}},
            "train": {"batch_size": 32, "optimizer": {"AdamW": {"lr": 2e-5}}, "steady": True},
            "stages": [{"name": "adapt", "steps": steps}],
        }
    )


def network(steps: int) -> RecipeSpec:
    """A convolutional network on 8 x 8 pictures."""
    return recipe_from_tree(
        {
            "data": {"main": {"path": "digits"}},
            "models": {"main": {"network": {"ConvNet": {"width": 16}}, "image_size": 8}},
            "train": {"batch_size": 64, "optimizer": {"AdamW": {"lr": 2e-3}}},
            "stages": [{"name": "train", "steps": steps}],
        }
    )


CASES = {"MiniLM, full fine-tuning": (minilm, 150), "small convolutional network": (network, 1200)}


class Timed(Checkpointer):
    """Knows how long the run waited in it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, every=EVERY)
        self.waited: list[float] = []

    def save(self, run: Run, *, score: float | None = None) -> Path:
        """Save, by the clock."""
        begin = time.perf_counter()
        path = super().save(run, score=score)
        self.waited.append(time.perf_counter() - begin)
        return path


def train(spec: RecipeSpec, folder: Path, *, saving: bool) -> tuple[float, list[float], dict[str, Tensor]]:
    """(seconds, seconds that each save kept a step waiting, the trained weights)."""
    recipe = assemble(spec).recipe
    folder.mkdir()
    checkpoints = Timed(folder / "checkpoints")
    hooks = [StepCounter(lambda count, note: None), *([checkpoints] if saving else [])]
    begin = time.perf_counter()
    fit(recipe, seed=spec.seed, hooks=hooks, log=EventLog(folder / "events.jsonl", candidate="full"))
    return time.perf_counter() - begin, checkpoints.waited, recipe.model.state_dict()


def compare(name: str, rounds: int, quick: bool) -> dict[str, Any]:
    """Both ways in turn, and what the last checkpoint takes to load."""
    make, steps = CASES[name]
    spec = make(EVERY + 1 if quick else steps)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    waited: list[float] = []
    found: dict[str, Any] = {}
    for number in range(rounds):
        weights: dict[bool, dict[str, Tensor]] = {}
        with tempfile.TemporaryDirectory() as place:
            for saving in (number % 2 == 0, number % 2 == 1):  # who goes first changes
                took, stalls, weights[saving] = train(spec, Path(place) / str(saving), saving=saving)
                seconds[saving].append(took)
                waited += stalls
            assert all(torch.equal(value, weights[False][key]) for key, value in weights[True].items()), "other bits"
            found |= loading(Path(place) / "True" / "checkpoints", rounds)
        say(f"{name}, round {number + 1}: {seconds[True][-1]:.2f} s with saves, {seconds[False][-1]:.2f} s without")
    per_interval = statistics.median(seconds[False]) * EVERY / spec.stages[0].steps
    return found | {
        "commit": commit(),
        "rounds": rounds,
        "steps": spec.stages[0].steps,
        "every": EVERY,
        "seconds_with": summary(seconds[True]),
        "seconds_without": summary(seconds[False]),
        "slowdown": ratio(seconds[True], seconds[False]) | {"target": TARGETS["slowdown"]},
        "step_waits_s": summary(waited, digits=5),
        "waiting_share": round(statistics.median(waited) / per_interval, 5),
        "same_bits": True,
    }


def loading(folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds a GB of the newest checkpoint: verified and loaded, the hash alone, and loaded unverified."""
    newest = load_newest(folder)
    assert newest is not None
    path, gb = newest[1], (newest[1] / TENSORS).stat().st_size / 1e9
    ways = {
        "verified": lambda: load(path),
        "hash": lambda: sha256(path / TENSORS),
        "unverified": lambda: load_file(path / TENSORS),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            times[name].append((time.perf_counter() - begin) / gb)
    return {"gb": round(gb, 6), "load_s_per_gb": {name: summary(values) for name, values in times.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one short round of each, and no result file")
    parser.add_argument("--case", choices=CASES, help="one of them alone")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    wanted = CASES if options.case is None else [options.case]
    cases = {name: compare(name, 1 if options.quick else options.rounds, options.quick) for name in wanted}
    for name, one in cases.items():
        slow, hashed = one["slowdown"], one["load_s_per_gb"]["hash"]["median"]
        say(
            f"{name}: {100 * (slow['median'] - 1):+.2f} % ({100 * (slow['low'] - 1):+.2f} to {100 * (slow['high'] - 1):+.2f}); "
            f"a save keeps a step waiting {1e3 * one['step_waits_s']['median']:.2f} ms, {100 * one['waiting_share']:.2f} % of "
            f"{EVERY} steps; verification {hashed:.2f} s/GB of {one['gb']:.4f} GB"
        )
    if not options.quick:
        file = RESULTS / "checkpoint_cost.json"
        others = json.loads(file.read_text(encoding="utf-8"))["cases"] if options.case and file.exists() else {}
        result = {"machine": machine(), "targets": TARGETS, "cases": others | cases}
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
