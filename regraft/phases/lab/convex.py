"""A global minimum is certain only where the loss is convex: where descent from several starts ends."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from regraft.optim.optimizers import SGD
from regraft.phases.lab.parts import Chart, Demonstration, Table, grid_of, walk
from regraft.phases.report.figures import Line

STARTS, STEPS = (-2.6, -2.0, -1.2, -0.4, 0.3, 0.9, 1.5, 2.1, 2.6), 400
PAIRS = 500  # of points, between which convexity is tried


def bowl(at: Tensor) -> Tensor:
    """(x - 0.5)^2 / 2 + log(1 + e^x), convex."""
    x = at[..., 0]
    return (x - 0.5) ** 2 / 2 + torch.nn.functional.softplus(x)


def wavy(at: Tensor) -> Tensor:
    """x^2 / 6 + 1 - cos 3x, with several minima."""
    x = at[..., 0]
    return x**2 / 6 + 1 - torch.cos(3 * x)


def ends(function: Callable[[Tensor], Tensor]) -> list[float]:
    """Where gradient descent ends from each start."""
    return [float(walk(function, (start,), SGD(lr=0.05), STEPS)[-1, 0]) for start in STARTS]


def chords_above(function: Callable[[Tensor], Tensor], seed: int) -> float:
    """Share of random chords that lie above the function in their middle; 1 for a convex function."""
    draw = torch.Generator().manual_seed(seed)
    one, other = (6 * torch.rand(PAIRS, 1, generator=draw, dtype=torch.float64) - 3 for _ in range(2))
    middle = function((one + other) / 2)
    return float((middle <= (function(one) + function(other)) / 2 + 1e-12).double().mean())


def show(seed: int = 0) -> Demonstration:
    """Nine starts on a convex function and on one that is not."""
    found = {"convex": ends(bowl), "not convex": ends(wavy)}
    distinct = {name: len({round(x, 3) for x in at}) for name, at in found.items()}
    chords = {"convex": chords_above(bowl, seed), "not convex": chords_above(wavy, seed)}
    x = grid_of(-2.8, 2.8, 113)
    lines = []
    for k, (name, function) in enumerate((("convex", bowl), ("not convex", wavy))):
        values = function(torch.tensor(x, dtype=torch.float64)[:, None]).tolist()
        at = sorted({round(end, 3) + 0.0 for end in found[name]})
        marks = [(end, float(function(torch.tensor([end], dtype=torch.float64)))) for end in at]
        lines.append(Line(name=name, points=list(zip(x, values, strict=True)), marks=marks, kind=f"c{k}"))
    return Demonstration(
        title="Global minima and convexity",
        about="Gradient descent from nine starts on (x - ½)²/2 + log(1 + eˣ), which is convex, and on x²/6 + 1 - cos "
        "3x, which is "
        "not. A function is convex where every chord lies on or above it; then each local minimum is a global one (Boyd and "
        "Vandenberghe, 2004, section 4.2.2). The loss of a network with a hidden layer is not convex in its weights.",
        findings=(
            f"On the convex function all nine runs end at the same point, x = {abs(found['convex'][0]):.3f}.",
            f"On the other they end at {distinct['not convex']} different points; which one is a matter of the start.",
            f"Of {PAIRS} random chords {chords['convex']:.0%} lie above the first in their middle, "
            f"{chords['not convex']:.0%} above "
            "the second.",
        ),
        numbers={"ends": found, "distinct": distinct, "chords_above": chords},
        charts=(Chart(title="Where descent ends", lines=lines, x_label="x", y_label="f; dots are where runs ended"),),
        tables=(
            Table(
                columns=("start", "convex", "not convex"),
                rows=[
                    (f"{s:g}", f"{round(a, 3) + 0.0:.3f}", f"{round(b, 3) + 0.0:.3f}")
                    for s, a, b in zip(STARTS, found["convex"], found["not convex"], strict=True)
                ],
            ),
        ),
    )
