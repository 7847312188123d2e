"""What the loop costs: microseconds a step over a hand-written loop, on a network small enough for it to show.

    python benchmarks/step_overhead.py [--rounds 15] [--steps 300]

Both loops are run in turn, so that a busy machine slows both. The figure is the median over rounds of the difference of
one round's two times, with the interquartile range; threads: 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import torch
from torch import nn

from regraft.core import Loss, Recipe, Stage, compile, fit
from regraft.data.sources import Tensors
from regraft.losses.supervised import cross_entropy
from regraft.optim.build import DescentBuilder
from regraft.optim.optimizers import AdamW

WIDTH, BATCH = 64, 32


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))


def source():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 16, generator=generator)
    return Tensors({"x": x, "y": torch.randint(4, (4096,), generator=generator)}, BATCH)


def bare(model, batch, clock):
    """The loss of the hand-written loop: no accuracy, no missing labels."""
    return Loss(nn.functional.cross_entropy(model(batch["x"]), batch["y"]), float(len(batch["y"])))


def by_hand(steps):
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    begin = time.perf_counter()
    for _, batch in zip(range(steps), source().batches(model), strict=False):
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(batch["x"]), batch["y"]).backward()
        optimizer.step()
    return time.perf_counter() - begin


def by_regraft(steps, objective):
    model = network()
    update = DescentBuilder(optimizer=AdamW(lr=1e-3, weight_decay=0.0))
    stage = Stage(name="bench", model=model, source=source(), objective=objective, update=update, steps=steps)
    recipe = compile(Recipe(model=model, stages=(stage,)), [])
    begin = time.perf_counter()
    fit(recipe)
    return time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    loops = {
        "hand": lambda: by_hand(options.steps),
        "loop": lambda: by_regraft(options.steps, bare),
        "loop with accuracy": lambda: by_regraft(options.steps, cross_entropy),
    }
    for run in loops.values():
        run()  # warm up
    seconds = {name: [] for name in loops}
    for _ in range(options.rounds):
        for name, run in loops.items():
            seconds[name].append(run())
    micro = {name: [1e6 * s / options.steps for s in values] for name, values in seconds.items()}
    result = {"hand_us_per_step": round(statistics.median(micro["hand"]), 1)}
    for name in ("loop", "loop with accuracy"):
        extra = [a - b for a, b in zip(micro[name], micro["hand"], strict=True)]
        low, middle, high = statistics.quantiles(extra, n=4)
        result[f"{name}: us per step over it"] = {
            "median": round(middle, 1),
            "quartiles": [round(low, 1), round(high, 1)],
        }
    machine = {"cpu": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1}
    print(json.dumps({**result, "rounds": options.rounds, "steps": options.steps, **machine}, indent=1))


if __name__ == "__main__":
    main()
