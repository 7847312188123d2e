"""What a frozen prefix saves: seconds of an epoch with 0, 3, 5 and 6 of 6 blocks frozen, with and without a store of its results.

    python benchmarks/frozen.py [--rows 1280] [--rounds 5]

MiniLM on that many rows of banking77, batches of 32, in bf16 where that is faster; all arms take turns in one process. The
seconds with a store are those of an epoch after the first; what filling it costs stands beside them. Then two more things:

- the losses of two epochs with a store minus those without, in fp32, alone and under distillation, SAM, EWC, DANN, staged thaw
  and LoRA in the top half, for texts of any length and for texts of 16 tokens and more. Below 16 tokens PyTorch's kernels for
  attention round differently in batches padded differently, which `models.attention` mends.
- fifty head-level candidates (ten feature sets, five penalties each, on 3,000 rows) against one epoch of full fine-tuning.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import DATA, RESULTS, Store, ratio, say, summary

from regraft.config.data import DataSpec
from regraft.config.parse import parse_one
from regraft.config.recipe import ModelSpec, TrainSpec
from regraft.core import Hook, Loss, Recipe, Run, Stage, compile, fit
from regraft.core.descent import Precision
from regraft.data.read import load
from regraft.losses.supervised import objective_for
from regraft.phases.choose.features import all_features
from regraft.phases.choose.fit import fit_head, standardised
from regraft.phases.choose.precision import choose_precision
from regraft.phases.materials import prepare, readable_model
from regraft.phases.training import builder, examples, set_steady
from regraft.techniques.continual.ewc import EWC
from regraft.techniques.distil.distillation import Distillation
from regraft.techniques.domain.dann import DANN
from regraft.techniques.peft.lora import LoRA
from regraft.techniques.regularise.sam import SAM
from regraft.techniques.transfer.cache_prefix import CachePrefix
from regraft.techniques.transfer.last_k import LastK
from regraft.techniques.transfer.staged_thaw import StagedThaw

LARGE = "6 of 6, batches of 256"  # 32 rows of a head are less work than starting the operations on them
BLOCKS = {"0 of 6": None, "3 of 6": 3, "5 of 6": 1, "6 of 6": 0, LARGE: 0}  # frozen blocks -> blocks that train
GOALS = {"3 of 6": 2.2, "5 of 6": 5.0, "6 of 6": 100.0, LARGE: 100.0}  # unfrozen (6 of 6: recomputing) over stored
EPOCHS, TRAJECTORY_ROWS = 11, 96


class Laps(Hook):
    """When each step ended."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_step(self, run: Run, loss: Loss) -> None:
        """Note the time."""
        self.at.append(time.perf_counter())


class Setting:
    """banking77 and MiniLM, ready for recipes."""

    def __init__(self, rows: int, shortest: int = 0) -> None:
        spec, model = DataSpec(path=str(DATA / "banking77")), ModelSpec(name="minilm")
        self.dataset = load(spec)
        self.materials = prepare(self.dataset, spec, model)
        lengths = self.materials.encoded("train").lengths
        long_enough = np.flatnonzero(lengths >= shortest)
        picked = np.sort(np.random.default_rng(0).permutation(long_enough)[:rows])
        self.materials.rows_["train"] = self.materials.rows("train")[picked]
        self.materials.encoded_.clear()
        self.encoded, self.targets = self.materials.encoded("train"), self.materials.targets("train")
        self.model = readable_model(model, self.materials).eval()
        self.per_epoch = -(-len(self.targets) // 32)

    def recipe(
        self, techniques: list[Any], *, precision: Precision, steps: int, lr: float = 5e-4, batch_size: int = 32
    ) -> Recipe:
        """One supervised stage on a copy of the model."""
        model = copy.deepcopy(self.model)
        set_steady(model)
        optimizer = parse_one({"AdamW": {"lr": lr}}, "optimizer")
        options = TrainSpec(batch_size=batch_size, precision=precision, steady=True, optimizer=optimizer)
        source = examples(self.encoded, self.targets, options, seed=0)
        stage = Stage(
            name="bench", model=model, source=source, objective=objective_for(self.materials.task), update=builder(options),
            steps=steps,
        )  # fmt: skip
        return compile(Recipe(model=model, stages=(stage,)), techniques)


def epoch(
    setting: Setting, blocks: int | None, *, stored: bool, precision: Precision, batch_size: int = 32
) -> dict[str, float]:
    """Seconds of an epoch after the first, and what came before its first step's end (filling the store, if there is one)."""
    techniques = ([] if blocks is None else [LastK(blocks=blocks)]) + [CachePrefix(max_gb=8)] * stored
    epochs = EPOCHS if stored and not blocks else 2
    per_epoch = -(-len(setting.targets) // batch_size)
    recipe = setting.recipe(techniques, precision=precision, steps=epochs * per_epoch, batch_size=batch_size)
    laps = Laps()
    began = time.perf_counter()
    fit(recipe, hooks=[laps])
    steps = np.diff(laps.at[per_epoch - 1 :])
    return {"seconds": float(steps.sum()) / (epochs - 1), "first_step": laps.at[0] - began}


def trajectories(setting: Setting) -> dict[str, float]:
    """Largest difference of a loss with a store from the one without, over two epochs in fp32; 0 means the same bits."""
    teacher = copy.deepcopy(setting.model)
    target = examples(setting.encoded, None, TrainSpec(batch_size=32), seed=5)
    cases: dict[str, list[Any]] = {
        "top half": [LastK(blocks=3)],
        "head": [LastK(blocks=0)],
        "top half, distillation": [LastK(blocks=3), Distillation(teacher=teacher)],
        "top half, SAM": [LastK(blocks=3), SAM()],
        "top half, EWC": [LastK(blocks=3), EWC(weight=1.0, samples=16)],
        "top half, DANN": [LastK(blocks=3), DANN(target=target)],
        "staged thaw": [StagedThaw(groups_per_stage="even", shares=(0.2, 0.3, 0.5))],
        "LoRA in the top half": [LoRA(rank=4, targets="layer.[345].*")],
    }
    found: dict[str, float] = {}
    for name, techniques in cases.items():
        losses = []
        for extra in ([], [CachePrefix()]):
            recipe = setting.recipe([*techniques, *extra], precision="fp32", steps=2 * setting.per_epoch)
            losses.append([record["loss"] for record in fit(recipe, log_every=1).history])
        found[name] = float(np.abs(np.subtract(*losses)).max())
        say(f"{name}: largest difference of a loss {found[name]:.1e}")
    return found


def fifty_heads(rows: int = 3000) -> float:
    """Seconds of fitting fifty heads to convergence on features that are there: ten feature sets, five penalties each."""
    setting = Setting(rows)
    features = all_features(setting.model, setting.encoded, precision="fp32")
    depths = sorted({depth for depth, _ in features})
    sets = [[(d, "mean")] for d in depths] + [[(depths[-1], "mean"), (depths[-1], p)] for p in ("max", "first")]
    sets.append([(d, "mean") for d in depths])
    began, count = time.perf_counter(), 0
    for reads in sets[:10]:
        matrix, start = standardised([features[read] for read in reads], half=True), None
        for l2 in (1.0, 0.1, 0.01, 1e-3, 1e-4):
            start = fit_head(matrix, setting.targets, setting.materials.problem, l2=l2, start=start, tolerance=1e-4)
            count += 1
    if count != 50:
        raise SystemExit(f"{count} candidates were fitted, not fifty")
    return time.perf_counter() - began


def conclude(store: Store) -> dict[str, Any]:
    """Medians, and how many times faster an epoch with a store is."""
    plain = {name: store.values(f"{name}, computed", "seconds") for name in BLOCKS}
    arms: dict[str, Any] = {}
    for name in BLOCKS:
        stored = store.values(f"{name}, stored", "seconds")
        arms[name] = {"computed": summary(plain[name], digits=4)}
        if stored:
            against = plain[name] if name.startswith("6 of 6") else plain["0 of 6"]
            arms[name] |= {
                "stored": summary(stored, digits=4),
                "fill": summary(store.values(f"{name}, stored", "first_step"), digits=3),
                "times_faster": ratio(against, stored) | {"goal": GOALS[name]},
            }
    return arms


def main() -> None:
    """Measure, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1280)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "frozen.json")
    parser.add_argument("--only", choices=["epochs", "trajectories", "heads"], default=None)
    options = parser.parse_args()
    torch.set_num_threads(2)
    setting = Setting(options.rows)
    precision, reason = choose_precision(setting.model, setting.encoded)[:2]
    store = Store(
        options.out, settings={"rows": len(setting.targets), "batch_size": 32, "precision": precision, "why": reason}
    )
    if options.only in (None, "epochs"):
        keys = [
            f"{name}, {way}"
            for name in BLOCKS
            for way in ("computed", "stored")
            if name != "0 of 6" or way == "computed"
        ]
        store.forget(keys)
        for number in range(options.rounds):
            for key in keys:
                name, _, way = key.rpartition(", ")
                size = 256 if name == LARGE else 32
                run = epoch(setting, BLOCKS[name], stored=way == "stored", precision=precision, batch_size=size)
                store.add(key, run)
            say(f"round {number + 1} of {options.rounds}")
        store.write(epochs=conclude(store))
    if options.only in (None, "trajectories"):
        any_length = trajectories(Setting(TRAJECTORY_ROWS))
        long = trajectories(Setting(TRAJECTORY_ROWS, shortest=16))
        store.write(loss_differences={"texts of any length": any_length, "texts of 16 tokens and more": long})
    if options.only in (None, "heads"):
        seconds = [fifty_heads() for _ in range(3)]
        whole = 10_003 / len(setting.targets)
        epochs = [whole * value for value in store.values("0 of 6, computed", "seconds")]
        store.write(
            fifty_heads={"seconds": summary(seconds), "full_epoch_of_all_rows": summary(epochs) if epochs else None}
        )
    say(f"wrote {options.out}")


if __name__ == "__main__":
    main()
