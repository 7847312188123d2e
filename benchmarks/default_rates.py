"""The rates that the race's strategies begin with: validation accuracy and loss of a grid of them, on text and on small images.

    python benchmarks/default_rates.py [--seeds 3] [--only SET ...] [--strategies full lora ...]

Every strategy trains as the race would have it (`regraft.phases.choose.rules.candidate`), from the probe's head, on a sample
of the training rows of its own for each seed; only the rate differs. `best` in the result is, for each set and strategy, the
rate with the highest mean accuracy, and `level` those whose mean loss of accuracy against it, within a seed, is below one
standard error. `cost` is the seconds of a strategy's training over those of all weights: the median over seeds and rates.
`sst2, whole` trains on all rows, for 430 steps, which takes a quarter of an hour a seed. The last strategy,
`scratch`, trains all weights from fresh ones. Data comes from `REGRAFT_DATA`.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from dataclasses import dataclass
from typing import Any

from harness import DATA, MOBILENET, RESULTS, Store, rounds, say


@dataclass(frozen=True, kw_only=True)
class Case:
    """A data set, the model that is adapted to it, and for how long."""

    data: dict[str, Any]
    model: dict[str, Any]
    steps: int


TEXT = {"name": "minilm", "max_length": 48}
IMAGE = {"name": str(MOBILENET)}
CASES = {
    "sst2": Case(data={"path": str(DATA / "sst2"), "limit": 800, "limit_valid": 600}, model=TEXT, steps=75),
    "sst2, whole": Case(data={"path": str(DATA / "sst2")}, model=TEXT, steps=430),
    "ag_news": Case(data={"path": str(DATA / "ag_news"), "limit": 800, "limit_valid": 400}, model=TEXT, steps=75),
    "sign_digits": Case(data={"path": str(DATA / "sign_digits"), "valid": 0.3}, model=IMAGE, steps=120),
    "cifar10_jpg": Case(
        data={"path": str(DATA / "cifar10_jpg"), "limit": 800, "valid": 0.2}, model=IMAGE, steps=120
    ),
    "fashion_mnist_900": Case(data={"path": str(DATA / "fashion_mnist_900"), "valid": 0.3}, model=IMAGE, steps=120),
}  # fmt: skip
GRIDS = {  # modality -> strategy -> rates
    "text": {
        "full": (5e-5, 1e-4, 2e-4, 4e-4),
        "lora": (2e-4, 5e-4, 1e-3, 2e-3),
        "last-k": (1e-4, 2e-4, 4e-4),
        "thaw": (1e-4, 2e-4),
    },
    "image": {
        "full": (3e-4, 1e-3, 2e-3, 5e-3, 1e-2),
        "adapter": (1e-3, 3e-3, 1e-2),
        "last-k": (3e-4, 1e-3, 3e-3, 1e-2),
        "scratch": (1e-3, 3e-3, 1e-2, 3e-2),
    },
}


def trained(name: str, seed: int, strategies: list[str]) -> list[dict[str, Any]]:
    """One line for each strategy and rate: accuracy and loss on the validation rows, and seconds of training."""
    import torch

    from regraft.config.recipe import recipe_from_tree
    from regraft.core import fit
    from regraft.optim.optimizers import Optimizer
    from regraft.phases.build import assemble
    from regraft.phases.choose.rules import Facts, candidate
    from regraft.phases.training import Valid, supervised_recipe

    case = CASES[name]
    tree = {
        "seed": seed, "data": {"main": case.data | {"seed": seed}}, "models": {"main": case.model}, "probe": {},
        "stages": [{"name": "adapt", "steps": 1}],
    }  # fmt: skip
    made = assemble(recipe_from_tree(tree))
    main, modality = made.main, made.main.materials.dataset.schema.modality
    valid = Valid(encoded=main.encoded("valid"), targets=main.targets("valid"), task=made.task)
    facts = Facts(
        modality=modality, rows=len(main.encoded("train")), num_blocks=6 if modality == "text" else 13, best_depth=1.0
    )
    lines = [{"strategy": "probe", "rate": 0.0, **valid.measure(made.base), "seconds": 0.0}]
    for strategy in (each for each in GRIDS[modality] if each in strategies):
        options = candidate("full" if strategy == "scratch" else strategy, facts, steps=case.steps, why="")
        for rate in GRIDS[modality][strategy]:
            optimizer = options.train.optimizer
            assert isinstance(optimizer, Optimizer)
            train = options.train.replaced(optimizer=optimizer.replaced(lr=rate))
            techniques = () if strategy == "scratch" else options.techniques
            model = copy.deepcopy(made.base)
            if strategy == "scratch":
                torch.manual_seed(seed)
                for module in model.modules():
                    if hasattr(module, "reset_parameters"):
                        module.reset_parameters()
                train = train.replaced(steady=False)
            recipe = supervised_recipe(
                model, main.encoded("train"), main.targets("train"), task=made.task, seed=seed,
                candidate=options.replaced(train=train, techniques=techniques),
            )  # fmt: skip
            began = time.perf_counter()
            fit(recipe, seed=seed)
            seconds = round(time.perf_counter() - began, 1)
            lines.append({"strategy": strategy, "rate": rate, **valid.measure(recipe.model), "seconds": seconds})
            say(f"{name}, seed {seed}, {strategy} at {rate:g}: {lines[-1]['score']:.4f} in {seconds} s")
    return lines


def judged(store: Store) -> dict[str, Any]:
    """Set -> strategy -> the best rate, those level with it, and mean accuracy and loss of each."""
    out: dict[str, Any] = {}
    for name, runs in store.runs.items():
        lines = [line for run in runs for line in run["lines"]]
        for strategy in dict.fromkeys(line["strategy"] for line in lines):
            of = [line for line in lines if line["strategy"] == strategy]
            scores = {r: [line["score"] for line in of if line["rate"] == r] for r in sorted({o["rate"] for o in of})}
            best = max(scores, key=lambda rate: statistics.mean(scores[rate]))
            level = [rate for rate in scores if _level(scores[best], scores[rate])]
            out.setdefault(name, {})[strategy] = {
                "best": best,
                "level": level,
                "accuracy": {f"{rate:g}": round(statistics.mean(s), 4) for rate, s in scores.items()},
            }
            if costs := _costs(runs, strategy):
                out[name][strategy]["cost"] = round(statistics.median(costs), 3)
    return out


def _costs(runs: list[dict[str, Any]], strategy: str) -> list[float]:
    """Seconds of each training of a strategy over the median of all weights with the same seed."""
    costs: list[float] = []
    for run in runs:
        full = [line["seconds"] for line in run["lines"] if line["strategy"] == "full"]
        ours = [line["seconds"] for line in run["lines"] if line["strategy"] == strategy and strategy != "probe"]
        costs += [seconds / statistics.median(full) for seconds in ours if full]
    return costs


def _level(best: list[float], other: list[float]) -> bool:
    """Is the mean difference within a seed below one standard error of it?"""
    lost = [a - b for a, b in zip(best, other, strict=False)]
    error = statistics.stdev(lost) / len(lost) ** 0.5 if len(lost) > 1 else 0.0
    return statistics.mean(lost) <= error


def main() -> None:
    """Run what is missing and write the result file after every set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--strategies", nargs="+", default=["full", "lora", "adapter", "last-k", "thaw", "scratch"])
    arguments = parser.parse_args()
    store = Store(
        RESULTS / "default_rates.json", settings={"steps": {name: case.steps for name, case in CASES.items()}}
    )
    for key in rounds(dict.fromkeys(arguments.only, arguments.seeds), store):
        seed = len(store.runs.get(key, []))
        store.add(key, {"seed": seed, "lines": trained(key, seed, arguments.strategies)})
        store.write(judged=judged(store))


if __name__ == "__main__":
    main()
