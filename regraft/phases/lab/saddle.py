"""A saddle: descent is slow where the slope vanishes, momentum gathers speed, adaptive steps do not depend on the slope."""

from __future__ import annotations

from torch import Tensor

from regraft.optim.optimizers import SGD, Adagrad, Adam, RMSprop
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

START, STEPS, OUT = (1.0, 1e-5), 400, -0.2
WALKERS = {
    "SGD": SGD(lr=0.05),
    "SGD with momentum": SGD(lr=0.05, momentum=0.9),
    "Adagrad": Adagrad(lr=0.1),
    "RMSprop": RMSprop(lr=0.01),
    "Adam": Adam(lr=0.05),
}


def saddle(at: Tensor) -> Tensor:
    """x^2 / 2 - y^2 / 2 + y^4 / 4: a saddle at 0, minima of -1/4 at y = -1 and 1."""
    x, y = at[..., 0], at[..., 1]
    return x**2 / 2 - y**2 / 2 + y**4 / 4


def show(seed: int = 0) -> Demonstration:
    """Five optimizers from beside the ridge of a saddle; nothing is drawn at random."""
    paths = {name: walk(saddle, START, optimizer, STEPS) for name, optimizer in WALKERS.items()}
    losses = {name: saddle(path).tolist() for name, path in paths.items()}
    needed = {name: steps_until(values, OUT) for name, values in losses.items()}
    x, y = grid_of(-1.2, 1.2), grid_of(-0.4, 1.4)
    lines = [
        Line(name=name, points=[(float(a), float(b)) for a, b in path.tolist()], kind=f"c{k}")
        for k, (name, path) in enumerate(paths.items())
    ]
    return Demonstration(
        title="Leaving a saddle point",
        about="f(x, y) = x²/2 - y²/2 + y⁴/4 has a saddle at 0, where the gradient vanishes, and minima at y = ±1. All "
        "begin at "
        "x = 1, a hundred-thousandth beside the ridge. In high dimensions saddles are far more common than local minima "
        "(Dauphin et al., 2014, arXiv:1406.2572).",
        findings=(
            f"Plain SGD needs {said(needed['SGD'], STEPS)} steps: its step along the way out is as small as the slope there.",
            f"Momentum adds up steps of one direction and is out after {said(needed['SGD with momentum'], STEPS)}.",
            f"Adam, which divides a gradient by its own size, needs {said(needed['Adam'], STEPS)}, RMSprop "
            f"{said(needed['RMSprop'], STEPS)}: a small slope is no small step.",
        ),
        numbers={"steps": needed},
        charts=(
            Chart(
                title="Loss",
                lines=[series(name, values[:300], k, every=3) for k, (name, values) in enumerate(losses.items())],
                x_label="Step",
                y_label="f",
            ),
            Surface(title="Paths", grid=heights(saddle, x, y), x=x, y=y, paths=lines, lowest=(0.0, 1.0)),
        ),
        tables=(
            Table(
                columns=("optimizer", f"steps to f < {OUT}"),
                rows=[(name, said(count, STEPS)) for name, count in needed.items()],
            ),
        ),
    )
