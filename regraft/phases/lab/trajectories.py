"""Paths of optimizers over the functions of Beale and Rosenbrock, as pictures."""

from __future__ import annotations

from torch import Tensor

from regraft.optim.optimizers import SGD, Adadelta, Adam, Optimizer, RMSprop
from regraft.phases.lab.parts import Demonstration, Function, Surface, Table, grid_of, heights, walk
from regraft.phases.report.figures import Line

STEPS = 600
WALKERS: dict[str, tuple[Optimizer, Optimizer]] = {  # for Beale's function, for Rosenbrock's
    "SGD": (SGD(lr=0.005), SGD(lr=0.001)),
    "momentum": (SGD(lr=0.002, momentum=0.9), SGD(lr=0.0005, momentum=0.9)),
    "Adadelta": (Adadelta(lr=5.0), Adadelta(lr=5.0)),
    "RMSprop": (RMSprop(lr=0.02), RMSprop(lr=0.01)),
    "Adam": (Adam(lr=0.1), Adam(lr=0.1)),
}


def beale(at: Tensor) -> Tensor:
    """Beale's function, with its minimum of 0 at (3, 1/2) behind flat valleys."""
    x, y = at[..., 0], at[..., 1]
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def rosenbrock(at: Tensor) -> Tensor:
    """Rosenbrock's function, with its minimum of 0 at (1, 1) at the bottom of a curved valley."""
    x, y = at[..., 0], at[..., 1]
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def show(seed: int = 0) -> Demonstration:
    """Five optimizers over two functions; nothing is drawn at random."""
    made: tuple[tuple[str, Function, tuple[float, float], tuple[float, float], list[float], list[float]], ...] = (
        ("Beale", beale, (1.0, 1.5), (3.0, 0.5), grid_of(0.0, 4.0), grid_of(-1.0, 2.0)),
        ("Rosenbrock", rosenbrock, (-1.2, 1.0), (1.0, 1.0), grid_of(-1.8, 1.8), grid_of(-0.8, 2.2)),
    )
    surfaces, ends = list[Surface](), dict[str, dict[str, float]]()
    for k, (name, function, start, lowest, x, y) in enumerate(made):
        paths = {n: walk(function, start, both[k], STEPS) for n, both in WALKERS.items()}
        ends[name] = {n: float(function(path[-1])) for n, path in paths.items()}
        lines = [
            Line(name=n, points=[(float(a), float(b)) for a, b in path[::4].tolist()], kind=f"c{i}")
            for i, (n, path) in enumerate(paths.items())
        ]
        surfaces.append(Surface(title=name, grid=heights(function, x, y), x=x, y=y, paths=lines, lowest=lowest))
    best = {name: min(values, key=values.__getitem__) for name, values in ends.items()}
    return Demonstration(
        title="Optimizers over two famous functions",
        about="Beale's function from (1, 1.5) and Rosenbrock's from (-1.2, 1), 600 steps each. Lines of equal height "
        "rise by a "
        "constant factor; a dot is where an optimizer ended.",
        findings=tuple(
            f"On {name}'s function {best[name]} comes lowest, to {values[best[name]]:.1g}; SGD ends at {values['SGD']:.1g}."
            for name, values in ends.items()
        ),
        numbers={"ends": ends},
        charts=surfaces,
        tables=(
            Table(
                columns=("optimizer", *(f"{name}, at the end" for name in ends)),
                rows=[(n, *(f"{values[n]:.1e}" for values in ends.values())) for n in WALKERS],
            ),
        ),
    )
