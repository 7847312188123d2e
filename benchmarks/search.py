"""The default search (ASHA, new trials drawn by TPE) against random search at the same budget in epochs, on real data.

Both search the same space by validation loss with the same seed. Random search trains every trial to its end; its epochs are the
budget of both. Measured per seed: the best validation loss of each at full training, the accuracy of that trial on the test rows,
and the share of random search's epochs after which ASHA has a result at least as good as random search's best.

    .venv/bin/python benchmarks/search.py [--seeds 5] [--tasks adult fashion_mnist_900] [--trials 24]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import DATA, RESULTS, machine

from regraft.config.recipe import RecipeSpec, dump_recipe, parse_recipe
from regraft.core import fit
from regraft.core.stopping import Stop
from regraft.phases.build import assemble
from regraft.phases.judges import judge_for
from regraft.search.engine import Engine
from regraft.search.journal import Journal
from regraft.search.methods import ASHA, Random
from regraft.search.results import best_of, ended, trials_of
from regraft.search.run import shares_of, with_fidelity
from regraft.search.trial import Workplace, run_leg
from regraft.search.workers import Here

SPACE = """
search:
  method: ASHA
  metric: loss
  space:
    train.optimizer:
      choice:
        - AdamW: {lr: {log: [1.0e-6, 1.0e-1]}, weight_decay: {log: [1.0e-4, 1.0]}}
        - SGD: {lr: {log: [1.0e-5, 1.0]}, momentum: {choice: [0.0, 0.9]}}
    train.schedule: {choice: [Constant, Cosine, {Linear: {warmup: 0.1}}]}
    models.main.network.MLP.width: {log_int: [8, 128]}
    models.main.network.MLP.depth: {int: [1, 4]}
    models.main.network.MLP.dropout: {uniform: [0.0, 0.5]}
"""
TASKS = {  # a space as wide as that of somebody who knows nothing yet
    "elec2": """
data: {main: {path: DATA/elec2, label: [class], task: binary, limit: 2000, limit_valid: 1000, limit_test: 2000}}
models: {main: {network: {MLP: {}}}}
stages: [{name: adapt, steps: 162}]
""",
    "mnist_5k": """
data: {main: {path: DATA/mnist_5k, limit: 1000, limit_valid: 400, limit_test: 1000}}
models: {main: {network: {MLP: {}}, image_size: 14}}
stages: [{name: adapt, steps: 162}]
""",
    "fashion_mnist_900": """
data: {main: {path: DATA/fashion_mnist_900, valid: 0.3}}
models: {main: {network: {MLP: {}}, image_size: 14}}
stages: [{name: adapt, steps: 162}]
""",
}


def recipe(task: str, seed: int, method: str, trials: int) -> RecipeSpec:
    """The recipe of a task with the search of one method."""
    text = TASKS[task].replace("DATA", str(DATA)) + SPACE
    return parse_recipe(
        text, overrides=[f"search.seed={seed}", f"search.method={method}", f"search.trials={trials}", f"seed={seed}"]
    )


def run(spec: RecipeSpec, folder: Path, budget: float | None) -> dict[str, Any]:
    """Trials until there are no more, or `budget` epochs were spent: curve of the best loss at full training, and its trial."""
    spec = with_fidelity(spec)
    (folder / "recipe.yaml").write_text(dump_recipe(spec))
    place, shares = Workplace(spec), shares_of(spec.search)
    method = spec.search.method
    assert isinstance(method, ASHA | Random)
    scheduler = method.start(place.space, shares=shares, trials=spec.search.trials, seed=spec.search.seed)
    engine = Engine(scheduler, Journal(folder / "journal.jsonl"), "loss", method.window)
    stop, began = Stop(), time.perf_counter()

    def spent() -> float:
        return sum(outcome.epochs for outcome in engine.outcomes.values())

    engine.run(
        Here(lambda work: run_leg(work, stop)),
        lambda leg: {"out": str(folder), "leg": leg.to_json()},
        stopping=lambda: budget is not None and spent() >= budget,
    )
    legs, total, curve = ended(engine), 0.0, []
    for each in legs:
        total += each.outcome.epochs
        if each.leg.share == 1 and each.outcome.loss is not None:
            curve.append((total, each.outcome.loss))
    trials = trials_of(legs, place.space)
    best = best_of(trials, "loss")
    assert best is not None
    return {
        "epochs": total,
        "trials": len(trials),
        "legs": len(legs),
        "seconds": time.perf_counter() - began,
        "curve": curve,
        "loss": best["loss"],
        "score": best["score"],
        "test": test_score(place.space.recipe(place.tree, best["drawn"])),
    }


def test_score(spec: RecipeSpec) -> float:
    """Accuracy on the test rows of a recipe trained once more, to its end."""
    assembled = assemble(spec)
    fit(assembled.recipe, seed=spec.seed)
    judge = judge_for(spec.techniques, assembled.main, "test")
    assert judge is not None
    return judge.measure(assembled.recipe.model)["score"]


def compare(task: str, seed: int, trials: int) -> dict[str, Any]:
    """One seed of one task."""
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / name for name in ("random", "asha")]
        for place in places:
            place.mkdir()
        random = run(recipe(task, seed, "Random", trials), places[0], None)
        asha = run(recipe(task, seed, "ASHA", 100 * trials), places[1], random["epochs"])
    reached = next((epochs for epochs, loss in asha["curve"] if loss <= random["loss"]), None)
    half = next((epochs for epochs, loss in random["curve"] if loss <= random["loss"]), None)
    for each in (random, asha):
        each["curve"] = [[round(x, 2), round(y, 5)] for x, y in each["curve"]]
    share = None if reached is None else reached / random["epochs"]
    return {
        "seed": seed,
        "random_trials": trials,
        "random": random,
        "asha": asha,
        "share": share,
        "random_share": half / random["epochs"],
    }


def interval(values: list[float]) -> list[float]:
    """95 % bootstrap interval of the mean."""
    draws = np.random.default_rng(0).choice(values, size=(4000, len(values))).mean(1)
    return [float(x) for x in np.percentile(draws, [2.5, 97.5])]


def main() -> None:
    """Measure, print, write results/search.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    target = RESULTS / "search.json"
    for task in given.tasks:
        for seed in range(given.seeds):
            known = stored(target, task)
            if any(one["seed"] == seed and one["random_trials"] == given.trials for one in known):
                continue
            one = compare(task, seed, given.trials)
            r, a = one["random"], one["asha"]
            print(
                f"{task} seed {seed}: loss {r['loss']:.4f} -> {a['loss']:.4f}, test {r['test']:.3f} -> {a['test']:.3f}, "
                f"epochs {r['epochs']:.0f}/{a['epochs']:.0f}, share to random's best {one['share']}, trials {a['trials']}, "
                f"{r['seconds']:.0f} s and {a['seconds']:.0f} s",
                flush=True,
            )
            keep(target, task, [*(k for k in stored(target, task) if k["seed"] != seed), one])


def stored(target: Path, task: str) -> list[dict[str, Any]]:
    """The seeds of a task that were measured before."""
    found = json.loads(target.read_text()) if target.exists() else {}
    return found.get("tasks", {}).get(task, {}).get("seeds", [])


def keep(target: Path, task: str, seeds: list[dict[str, Any]]) -> None:
    """Write the seeds of a task, and what they come to."""
    shares = [one["share"] for one in seeds]
    gains = [one["random"]["loss"] - one["asha"]["loss"] for one in seeds]
    tests = [one["asha"]["test"] - one["random"]["test"] for one in seeds]
    found: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    found |= {"machine": machine(), "threads": 1}
    found.setdefault("tasks", {})[task] = {
        "lower_loss": sum(gain > 0 for gain in gains),
        "loss_gain": {"mean": statistics.mean(gains), "interval": interval(gains)},
        "test_gain": {"mean": statistics.mean(tests), "interval": interval(tests)},
        "reached": sum(share is not None for share in shares),
        "median_share": median
        if (median := statistics.median(s if s is not None else 9.0 for s in shares)) < 9
        else None,
        "seeds": sorted(seeds, key=lambda one: one["seed"]),
    }
    target.write_text(json.dumps(found, indent=1) + "\n")
    print(task, {key: value for key, value in found["tasks"][task].items() if key != "seeds"}, flush=True)


if __name__ == "__main__":
    main()
