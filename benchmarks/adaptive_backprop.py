"""AdaptiveBackprop against full fine-tuning, LoRA and norm-only on sst2: counted FLOPs, seconds and test accuracy.

    python benchmarks/adaptive_backprop.py [--seeds 5] [--rows 6920] [--epochs 1] [--rate 2e-4] [--arms NAME ...] [--quick]

Every arm starts from the same model: all six layers of MiniLM-L6 with the probe's head, fitted to convergence on the last
layer's features of the training rows. Full, LoRA (rank 8) and norm-only have the options the main job races them with, but for
the rate of full, `--rate`, which does better here; the adaptive arms are the full one with one technique more. Full
fine-tuning for half of the steps stands beside them, for it costs as much as rho 0.5. Arms take turns within a seed,
beginning with another one in each; a seed decides the order of the rows and LoRA's initial weights. FLOPs are counted in
steps of both kinds, weighing or not, and compared with those of full fine-tuning batch by batch.

Data comes from `REGRAFT_DATA` (default: ../shared/data beside the repository). `--quick` tries the script: a seed, few rows.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scipy.stats
import torch

from regraft.config.recipe import CandidateSpec, recipe_from_tree
from regraft.core import Recipe, fit, flops
from regraft.core.descent import Precision
from regraft.core.train import advance, start
from regraft.optim.optimizers import AdamW
from regraft.phases.build import Assembled, assemble
from regraft.phases.choose.features import model_outputs
from regraft.phases.choose.rules import Facts, candidate
from regraft.phases.training import supervised_recipe
from regraft.techniques.transfer.adaptive_backprop import AdaptiveBackprop, AdaptiveUpdate

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("REGRAFT_DATA", ROOT.parent / "shared" / "data"))
FULL, HALF = "full", "full, half of the steps"
ADAPTIVE = {
    "rho 0.5, weigh 0.08": AdaptiveBackprop(rho=0.5, weigh=0.08),
    "rho 0.36, weigh 0.28": AdaptiveBackprop(rho=0.36, weigh=0.28),
    "rho 0.36, weigh 0.14": AdaptiveBackprop(rho=0.36, weigh=0.14),
}
LORA, NORM = "LoRA, rank 8", "norm-only"
ARMS = (FULL, HALF, *ADAPTIVE, LORA, NORM)
COUNTED = 12  # steps in which FLOPs are counted
PRECISION: Precision = "bf16"
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run of an arm."""

    seconds: float
    cpu_seconds: float
    accuracy: float  # on the test rows


def arms(options: argparse.Namespace, steps: int) -> dict[str, CandidateSpec]:
    """The arms asked for as candidates of the main job, by the name they have in the table."""
    facts = Facts(modality="text", rows=options.rows, num_blocks=6, best_depth=1.0, precision=PRECISION)
    full, lora, norm = (candidate(name, facts, steps=steps, why="benchmark") for name in ("full", "lora", "norm"))
    full = full.replaced(train=full.train.replaced(optimizer=AdamW(lr=options.rate, weight_decay=0.01)))
    every = {FULL: full, HALF: full.replaced(steps=steps // 2), LORA: lora, NORM: norm}
    every |= {name: full.replaced(techniques=(*full.techniques, technique)) for name, technique in ADAPTIVE.items()}
    return {name: every[name] for name in ARMS if name in {FULL, *(options.arms or ARMS)}}


def recipe_of(made: Assembled, spec: CandidateSpec, seed: int) -> Recipe:
    """An arm's compiled recipe over a copy of the model they all start from."""
    encoded, targets = made.main.encoded("train"), made.main.targets("train")
    return supervised_recipe(copy.deepcopy(made.base), encoded, targets, task=made.task, candidate=spec, seed=seed)


def trained(made: Assembled, spec: CandidateSpec, seed: int) -> Outcome:
    """Train an arm to its end and score it once on the test rows."""
    recipe = recipe_of(made, spec, seed)
    wall, cpu = time.perf_counter(), time.process_time()
    fit(recipe, seed=seed)
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    return Outcome(seconds=seconds, cpu_seconds=cpu_seconds, accuracy=accuracy(made, recipe.model))


def accuracy(made: Assembled, model: torch.nn.Module) -> float:
    """Share of the test rows a model has right."""
    outputs = model_outputs(model, made.main.encoded("test"), precision=PRECISION)
    return float((outputs.argmax(-1) == made.main.targets("test")).double().mean())


@dataclass(frozen=True, kw_only=True)
class Counted:
    """FLOPs of forward and backward passes, not of the optimizer."""

    of_steps: list[float]
    weighing: list[bool]  # did everything train in the step?
    weigh: float  # share of such steps in the whole run

    def share(self, full: Counted) -> float:
        """Of what full fine-tuning spends on the same batches, mean over the steps of the whole run."""
        ratios = [a / b for a, b in zip(self.of_steps, full.of_steps, strict=True)]
        of_kind = {kind: [r for r, k in zip(ratios, self.weighing, strict=True) if k is kind] for kind in (True, False)}
        shares = {True: self.weigh, False: 1.0 - self.weigh}
        return sum(shares[kind] * statistics.mean(found) for kind, found in of_kind.items() if found)


def counted(made: Assembled, spec: CandidateSpec) -> Counted:
    """FLOPs of the first steps of a short run."""
    run, whole = (start(recipe_of(made, spec.replaced(steps=steps), 0)) for steps in (COUNTED, spec.steps))
    update, planned = run.step.updates["all"], whole.step.updates["all"]
    counts, weighing = list[float](), list[bool]()
    for _ in range(COUNTED):
        weighing.append(update.weighing if isinstance(update, AdaptiveUpdate) else True)
        with flops.counted() as counter:
            advance(run, 1)
        counts.append(float(counter.get_total_flops()))
    weigh = planned.weigh / planned.period if isinstance(planned, AdaptiveUpdate) else 1.0
    return Counted(of_steps=counts, weighing=weighing, weigh=weigh)


def difference(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Mean paired difference and its 95 % t-interval; no interval for a single pair."""
    pairs = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = statistics.mean(pairs)
    if len(pairs) < 2:
        return {"mean": mean, "interval": None}
    reach = float(scipy.stats.t.ppf(0.975, len(pairs) - 1)) * statistics.stdev(pairs) / len(pairs) ** 0.5
    return {"mean": mean, "interval": [mean - reach, mean + reach]}


def row(
    spec: CandidateSpec, share: float, full_flops: float, outcomes: list[Outcome], full: list[Outcome]
) -> dict[str, Any]:
    """One arm of the result file; `share` and `full_flops` are of a step."""
    ours, theirs = [o.accuracy for o in outcomes], [o.accuracy for o in full]
    return {
        "steps": spec.steps,
        "flops_per_step": share * full_flops,
        "flops": share * full_flops * spec.steps,
        "seconds": statistics.median(o.seconds for o in outcomes),
        "seconds_of_each_run": [round(o.seconds, 2) for o in outcomes],
        "cpu_seconds": statistics.median(o.cpu_seconds for o in outcomes),
        "seconds_of_full": statistics.median(o.seconds / f.seconds for o, f in zip(outcomes, full, strict=True)),
        "accuracy": statistics.mean(ours),
        "accuracy_of_each_run": ours,
        "difference": difference(ours, theirs),
    }


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Run all arms for all seeds, in turns."""
    data = {"path": str(DATA / "sst2"), "limit": options.rows}
    tree = {"data": {"main": data}, "models": {"main": {"name": "minilm"}}, "probe": {"depths": "last"}}
    steps = round(options.epochs * -(-options.rows // BATCH))
    made = assemble(recipe_from_tree(tree | {"stages": [{"name": "adapt", "steps": steps}], "seed": 0}))
    specs = arms(options, steps)
    counts = {name: counted(made, spec) for name, spec in specs.items()}
    full_flops = statistics.mean(counts[FULL].of_steps)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in specs}
    names = list(specs)
    for seed in range(options.seeds):
        for name in names[seed % len(names) :] + names[: seed % len(names)]:
            outcomes[name].append(trained(made, specs[name], seed))
            last = outcomes[name][-1]
            print(f"seed {seed}: {name}: {last.accuracy:.4f} in {last.seconds:.1f} s", flush=True)
    rows = {
        name: row(spec, counts[name].share(counts[FULL]), full_flops, outcomes[name], outcomes[FULL])
        for name, spec in specs.items()
    }
    for each in rows.values():
        each["flops_of_full"] = each["flops"] / rows[FULL]["flops"]
    return {"accuracy_at_the_start": accuracy(made, made.base), "arms": rows}


def main() -> None:
    """Measure, and write the result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=6920, help="training rows")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate of full and the adaptive arms")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="only these, and full")
    parser.add_argument("--quick", action="store_true", help="a seed, 640 rows, an epoch")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "adaptive_backprop.json")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.rows, options.epochs = 1, 640, 1.0
    found = measured(options)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    settings = {key: getattr(options, key) for key in ("seeds", "rows", "epochs", "rate")}
    settings |= {"model": "MiniLM-L6, probe head on the last layer", "batch_size": BATCH, "precision": PRECISION}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine, "settings": settings, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
