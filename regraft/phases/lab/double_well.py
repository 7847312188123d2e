"""Two wells: the noise of single examples carries SGD out of the shallow one, at a fraction of the cost of a step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regraft.core.values import Clock
from regraft.optim.optimizers import SGD
from regraft.optim.schedules import Linear
from regraft.phases.lab.parts import Chart, Demonstration, Table, series

EXAMPLES, SEEDS, STEPS, RATE, SPREAD = 64, 40, 600, 0.03, 12.0


def wells(x: Tensor) -> Tensor:
    """(x^2 - 1)^2 + 0.3 x: a shallow well near 1, a deeper one near -1."""
    return (x**2 - 1) ** 2 + 0.3 * x


def run(batch: int, seeds: int, seed: int = 0) -> tuple[Tensor, int]:
    """(positions (steps + 1, seeds), gradients of single examples per step) of SGD from the shallow well.

    The loss is the mean over `EXAMPLES` tilted wells, f(x) + a_i x with the tilts a_i adding up to 0.
    """
    draw = torch.Generator().manual_seed(seed)
    tilt = torch.randn(EXAMPLES, generator=draw, dtype=torch.float64)
    tilt = SPREAD * (tilt - tilt.mean()) / tilt.std()
    at = nn.Parameter(torch.linspace(0.8, 1.2, seeds, dtype=torch.float64))
    optimizer, schedule = SGD(lr=RATE), Linear()
    made = optimizer.build({"at": at}, {})
    positions = [at.detach().clone()]
    for step in range(STEPS):
        rows = torch.rand(seeds, EXAMPLES, generator=draw).argsort(1)[:, :batch]
        made.param_groups[0]["lr"] = optimizer.lr * schedule(Clock(step, STEPS))
        made.zero_grad()
        (wells(at) + tilt[rows].mean(1) * at).sum().backward()
        made.step()
        positions.append(at.detach().clone())
    return torch.stack(positions), batch


def show(seed: int = 0) -> Demonstration:
    """Forty runs on one example a step, on eight, and on all."""
    sizes = (1, 8, EXAMPLES)
    found = {batch: run(batch, SEEDS, seed) for batch in sizes}
    escaped = {batch: int((path[-1] < 0).sum()) for batch, (path, _) in found.items()}
    cost = {batch: count for batch, (_, count) in found.items()}
    names = {1: "SGD, one example", 8: "minibatches of 8", EXAMPLES: "GD, all examples"}
    lost = {batch: float(wells(path[-1]).mean()) for batch, (path, _) in found.items()}
    return Demonstration(
        title="Noise escapes a local minimum",
        about=f"f(x) = (x² - 1)² + 0.3 x has a shallow well near 1 and a deeper one near -1. It is the mean over {EXAMPLES} "
        f"examples, each tilted to one side. {SEEDS} runs begin in the shallow well; the rate falls linearly to 0. A step on "
        "one example costs O(1), a step on all O(n); an epoch costs O(n) either way.",
        findings=(
            f"SGD on one example ends in the deeper well in {escaped[1]} of {SEEDS} runs, on batches of 8 in {escaped[8]}, "
            f"full-batch gradient descent in {escaped[EXAMPLES]}.",
            f"A step of gradient descent costs {cost[EXAMPLES]} gradients of single examples, one of SGD {cost[1]}.",
        ),
        numbers={
            "escaped": {str(k): v for k, v in escaped.items()},
            "gradients_per_step": {str(k): v for k, v in cost.items()},
            "loss": {str(k): v for k, v in lost.items()},
        },
        charts=(
            Chart(
                title="One run of each",
                lines=[
                    series(names[batch], path[:, SEEDS // 2].tolist(), k, every=15)
                    for k, (batch, (path, _)) in enumerate(found.items())
                ],
                x_label="Step",
                y_label="x; above 0 is the shallow well",
            ),
        ),
        tables=(
            Table(
                columns=("", "runs in the deeper well", "mean loss", "gradients a step"),
                rows=[(names[b], f"{escaped[b]} of {SEEDS}", f"{lost[b]:.3f}", f"{cost[b]}") for b in sizes],
            ),
        ),
        recipe="train: {batch_size: 1, optimizer: SGD}",
    )
