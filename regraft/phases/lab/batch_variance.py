"""The gradient of a minibatch: unbiased, with a variance of about one over the batch size, and more examples a second."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from regraft.phases.lab.parts import Chart, Demonstration, Table
from regraft.phases.report.figures import Line

EXAMPLES, SIDE, DRAWS, SIZES = 4096, 32, 400, (1, 4, 16, 64, 256)
TURNS = 7  # of measuring, for what else runs on the machine only takes away


def single_gradients(seed: int) -> Tensor:
    """The gradient of each example of a logistic regression at random weights, (N, D)."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(EXAMPLES, SIDE, generator=draw, dtype=torch.float64)
    y = torch.randint(2, (EXAMPLES,), generator=draw).double()
    w = torch.randn(SIDE, generator=draw, dtype=torch.float64) / SIDE**0.5
    return (torch.sigmoid(x @ w) - y)[:, None] * x


def variance(single: Tensor, batch: int, seed: int) -> float:
    """Mean squared distance of minibatch gradients from the full one."""
    draw = torch.Generator().manual_seed(seed + batch)
    whole = single.mean(0)
    rows = [torch.randperm(EXAMPLES, generator=draw)[:batch] for _ in range(DRAWS)]
    return float(torch.stack([(single[chosen].mean(0) - whole).square().sum() for chosen in rows]).mean())


def throughputs() -> dict[int, float]:
    """Examples a second through the forward and backward pass of a layer by size of batch, the best of turns that all take."""
    layer, best = torch.nn.Linear(256, 256), dict.fromkeys(SIZES, 0.0)
    for _ in range(TURNS):
        for batch in SIZES:
            x, passes = torch.ones(batch, 256), max(20, 400 // batch)
            begin = time.perf_counter()
            for _ in range(passes):
                layer(x).sum().backward()
            best[batch] = max(best[batch], passes * batch / (time.perf_counter() - begin))
    return best


def show(seed: int = 0) -> Demonstration:
    """Batches of 1 to 256 of 4,096 examples."""
    single = single_gradients(seed)
    found = {batch: variance(single, batch, seed) for batch in SIZES}
    (slope,) = (
        torch.linalg.lstsq(
            torch.tensor([[math.log(b), 1.0] for b in SIZES]), torch.tensor([[math.log(v)] for v in found.values()])
        )
        .solution[:1, 0]
        .tolist()
    )
    rates = throughputs()
    points = [(math.log2(b), math.log2(v)) for b, v in found.items()]
    ideal = [(math.log2(b), math.log2(found[1] / b)) for b in SIZES]
    return Demonstration(
        title="What a larger batch buys",
        about=f"The gradient of a logistic regression over {EXAMPLES:,} examples, against those of {DRAWS} random "
        f"minibatches of each "
        "size. The mean of the single gradients is the full gradient; the variance of a mean of B falls as 1/B.",
        findings=(
            f"From batches of 1 to {SIZES[-1]} the variance falls with the batch size to the power {slope:.2f}.",
            "Four times the batch costs four times the work and halves the noise, so large batches pay only where the "
            "machine "
            "does more examples a second on them.",
        ),
        measured=(
            f"Here a layer does {rates[1]:,.0f} examples a second one at a time and {rates[SIZES[-1]]:,.0f} in batches of "
            f"{SIZES[-1]}.",
        ),
        numbers={
            "variance": {str(b): v for b, v in found.items()},
            "power": slope,
            "examples_per_s": {str(b): v for b, v in rates.items()},
        },
        charts=(
            Chart(
                title="Variance",
                lines=[
                    Line(name="measured", points=points, marks=points, kind="c0"),
                    Line(name="1 / B", points=ideal, kind="c1"),
                ],
                x_label="log₂ batch size",
                y_label="log₂ variance",
            ),
        ),
        tables=(
            Table(
                columns=("batch", "variance", "times batch"),
                rows=[(str(b), f"{v:.3g}", f"{v * b:.3g}") for b, v in found.items()],
            ),
            Table(
                columns=("batch", "examples a second"),
                rows=[(str(b), f"{r:,.0f}") for b, r in rates.items()],
                measured=True,
            ),
        ),
        recipe="train: {batch_size: 64}",
    )
