"""Plateaus and local minima: a rate that rises again, or noise, gets out where a constant rate stays."""

from __future__ import annotations

import torch
from torch import Tensor

from regraft.optim.cycles import WarmRestarts
from regraft.optim.optimizers import SGD
from regraft.optim.schedules import Linear, Schedule
from regraft.phases.lab.parts import Chart, Demonstration, Table, said, series, steps_until, walk

STEPS, START, FAR = 400, 6.0, 4.0
CYCLES = WarmRestarts(cycles=10, growth=1.0, floor=0.02)


def bumps(at: Tensor) -> Tensor:
    """x^2 / 20 + 1 - cos 2x: a minimum of 0 at 0, and local ones about every pi."""
    x = at[..., 0]
    return x**2 / 20 + 1 - torch.cos(2 * x)


def plateau(at: Tensor) -> Tensor:
    """1 - exp(-x^2 / 2): flat away from its minimum at 0."""
    return 1 - torch.exp(-(at[..., 0] ** 2) / 2)


def runs() -> dict[str, tuple[SGD, Schedule | None, float]]:
    """(optimizer, schedule, noise) of each way down."""
    return {
        "constant rate": (SGD(lr=0.05), None, 0.0),
        "cyclical rate": (SGD(lr=1.6), CYCLES, 0.0),
        "noise that dies down": (SGD(lr=0.3), Linear(), 3.0),
    }


def show(seed: int = 0) -> Demonstration:
    """Three ways down a function with bumps, and two across a plateau."""
    paths = {n: walk(bumps, (START,), o, STEPS, schedule=s, noise=z, seed=seed) for n, (o, s, z) in runs().items()}
    ends = {name: float(bumps(path)[-10:].mean()) for name, path in paths.items()}
    lows = {name: float(bumps(path).min()) for name, path in paths.items()}
    slow = walk(plateau, (FAR,), SGD(lr=1.0), 2 * STEPS)
    cyclic = walk(plateau, (FAR,), SGD(lr=6.0), 2 * STEPS, schedule=CYCLES)
    crossed = {
        "constant rate": steps_until(plateau(slow).tolist(), 0.5),
        "cyclical rate": steps_until(plateau(cyclic).tolist(), 0.5),
    }
    return Demonstration(
        title="Out of local minima and off plateaus",
        about="f(x) = x²/20 + 1 - cos 2x has its minimum at 0 and a local one in every bump; all begin in the second "
        "bump, at "
        "x = 6. 1 - exp(-x²/2), begun at x = 4, is nearly flat there. A cyclical rate rises to its highest ten times "
        "(Smith, 2017, arXiv:1506.01186; Loshchilov and Hutter, 2017, arXiv:1608.03983).",
        findings=(
            f"With a constant rate the loss ends at {ends['constant rate']:.2f}, in the bump it began in.",
            f"With a cyclical rate it comes down to {lows['cyclical rate']:.3f}, with noise that dies down the run "
            f"ends at {ends['noise that dies down']:.3f}.",
            f"The plateau is left after {said(crossed['constant rate'], 2 * STEPS)} steps at a constant rate of 1, after "
            f"{said(crossed['cyclical rate'], 2 * STEPS)} with cycles from 6 down to 0.12, which also comes to rest "
            f"at the minimum.",
        ),
        numbers={"ends": ends, "lowest": lows, "plateau": crossed},
        charts=(
            Chart(
                title="Bumps",
                lines=[series(n, bumps(p).tolist(), k, every=3) for k, (n, p) in enumerate(paths.items())],
                x_label="Step",
                y_label="f",
            ),
            Chart(
                title="Plateau",
                lines=[
                    series("constant rate", plateau(slow).tolist(), 0, every=8),
                    series("cyclical rate", plateau(cyclic).tolist(), 1, every=8),
                ],
                x_label="Step",
                y_label="f",
            ),
        ),
        tables=(
            Table(
                columns=("", "loss at the end", "lowest loss"),
                rows=[(name, f"{ends[name]:.3f}", f"{lows[name]:.3f}") for name in paths],
            ),
        ),
        recipe="train: {optimizer: SGD, schedule: {WarmRestarts: {cycles: 10, growth: 1.0}}}",
    )
