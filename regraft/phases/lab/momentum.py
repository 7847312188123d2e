"""Momentum keeps its direction, adaptive steps give each parameter a rate of its own, Adam does both: on one quadratic."""

from __future__ import annotations

import torch
from torch import Tensor

from regraft.optim.optimizers import SGD, Adagrad, Adam, Optimizer, RMSprop
from regraft.phases.lab.parts import (
    Chart,
    Demonstration,
    Surface,
    Table,
    grid_of,
    heights,
    said,
    series,
    steps_until,
    walk,
)
from regraft.phases.report.figures import Line

CURVATURES, START, STEPS, LIMIT, NOISE = (1.0, 50.0), (-4.0, 2.0), 300, 1e-3, 100.0
WALKERS: dict[str, Optimizer] = {
    "SGD": SGD(lr=0.037),
    "momentum": SGD(lr=0.01, momentum=0.9),
    "Nesterov": SGD(lr=0.01, momentum=0.9, nesterov=True),
    "Adagrad": Adagrad(lr=0.8),
    "RMSprop": RMSprop(lr=0.05, alpha=0.9),
    "Adam": Adam(lr=0.3),
}


def bowl(at: Tensor) -> Tensor:
    """(x^2 + 50 y^2) / 2."""
    return (at.square() * torch.tensor(CURVATURES, dtype=torch.float64)).sum(-1) / 2


def kept_direction(optimizer: Optimizer, seed: int) -> float:
    """Mean cosine between one small step and the next where gradients are noisy; 0 is any which way, 1 straight on."""
    slow = optimizer.replaced(lr=optimizer.lr / 100)
    steps = walk(bowl, START, slow, 200, noise=NOISE, seed=seed).diff(dim=0)[20:]
    return float(torch.cosine_similarity(steps[:-1], steps[1:], dim=1).mean())


def first_step(path: Tensor) -> float:
    """Length of the first step along the flat axis over that along the steep one."""
    step = (path[1] - path[0]).abs()
    return float(step[0] / step[1])


def show(seed: int = 0) -> Demonstration:
    """Six optimizers on a quadratic with curvatures 1 and 50; noise where said."""
    paths = {name: walk(bowl, START, optimizer, STEPS) for name, optimizer in WALKERS.items()}
    losses = {name: bowl(path).tolist() for name, path in paths.items()}
    needed = {name: steps_until([v / values[0] for v in values], LIMIT) for name, values in losses.items()}
    direction = {name: kept_direction(optimizer, seed) for name, optimizer in WALKERS.items()}
    ratio = {name: first_step(path) for name, path in paths.items()}
    x, y = grid_of(-4.5, 2.0), grid_of(-2.2, 2.2)
    lines = [
        Line(name=name, points=[(float(a), float(b)) for a, b in path[:60].tolist()], kind=f"c{k}")
        for k, (name, path) in enumerate(paths.items())
    ]
    logs = {name: [torch.tensor(max(v, 1e-8)).log10().item() for v in values[:150]] for name, values in losses.items()}
    return Demonstration(
        title="Momentum and rates per parameter on one quadratic",
        about="f(x, y) = (x² + 50 y²)/2 from (-4, 2). The rate of plain SGD is bounded by the steep axis, 2/50, and "
        "so it crawls along "
        "the flat one. Momentum averages gradients over steps (Sutskever et al., 2013); Adagrad and RMSprop divide each "
        "coordinate by the size of its gradients; Adam does both (Kingma and Ba, 2015, arXiv:1412.6980).",
        findings=(
            f"To a thousandth of the loss SGD needs {said(needed['SGD'], STEPS)} steps, momentum "
            f"{said(needed['momentum'], STEPS)}, "
            f"Nesterov {said(needed['Nesterov'], STEPS)}, Adam {said(needed['Adam'], STEPS)}.",
            f"Momentum keeps its direction: with noise as large as the gradient the mean cosine between one small "
            f"step and the next "
            f"is {direction['momentum']:.2f}, for SGD {direction['SGD']:.2f}, for RMSprop {direction['RMSprop']:.2f}.",
            f"Adaptive steps have a rate per parameter: the first step of SGD is {1 / ratio['SGD']:.0f} times longer "
            f"along the steep "
            "axis, that of Adagrad, RMSprop and Adam as long along both.",
            f"Adam does both: a cosine of {direction['Adam']:.2f}, and equal first steps.",
        ),
        numbers={"steps": needed, "kept_direction": direction, "first_step_ratio": ratio},
        charts=(
            Surface(
                title="Paths, the first 60 steps", grid=heights(bowl, x, y), x=x, y=y, paths=lines, lowest=(0.0, 0.0)
            ),
            Chart(
                title="Loss",
                lines=[series(name, values, k, every=3) for k, (name, values) in enumerate(logs.items())],
                x_label="Step",
                y_label="log₁₀ f",
            ),
        ),
        tables=(
            Table(
                columns=("optimizer", "steps to 1/1000", "cosine of steps", "first step, flat / steep"),
                rows=[(n, said(needed[n], STEPS), f"{direction[n]:.2f}", f"{ratio[n]:.2f}") for n in WALKERS],
            ),
        ),
        recipe="train: {optimizer: {SGD: {lr: 0.01, momentum: 0.9, nesterov: true}}}",
    )
