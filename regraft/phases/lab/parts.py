"""What a demonstration is made of, and a walk of an optimizer over a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regraft.core.values import Clock
from regraft.optim.optimizers import Optimizer
from regraft.optim.schedules import Schedule
from regraft.phases.report.figures import Line, Point

Function = Callable[[Tensor], Tensor]  # of a position (D,), or of many (N, D), to () or (N,)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines over one axis."""

    title: str
    lines: Sequence[Line]
    x_label: str
    y_label: str
    measured: bool = False  # differs from run to run, so that no committed page holds it


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Paths over a function of two numbers, seen from above; `grid[i][j]` is its value at (x[j], y[i])."""

    title: str
    grid: Sequence[Sequence[float]]
    x: Sequence[float]
    y: Sequence[float]
    paths: Sequence[Line]
    lowest: Point


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of short texts."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    measured: bool = False


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """What was computed, as text, pictures and numbers. `numbers` are what the text says, for machines and tests."""

    title: str
    about: str  # what is looked at and how, with the source
    findings: Sequence[str]  # what came out, a sentence each
    numbers: Mapping[str, Any]
    charts: Sequence[Chart | Surface] = ()
    tables: Sequence[Table] = ()
    measured: Sequence[str] = field(default=())  # findings that differ from run to run
    recipe: str = ""  # YAML of what a user would write to have it


def walk(
    function: Function,
    start: Sequence[float],
    optimizer: Optimizer,
    steps: int,
    *,
    schedule: Schedule | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Positions (steps + 1, D) of an optimizer of a recipe that goes down a function, in float64.

    Args:
        function: of a position (D,) to ().
        start: the first position.
        optimizer: as a recipe names it.
        steps: to make.
        schedule: factor on its rate; default 1 throughout.
        noise: standard deviation of what is added to every gradient.
        seed: of the noise.
    """
    at = nn.Parameter(torch.tensor(list(start), dtype=torch.float64))
    made = optimizer.build({"at": at}, {})
    draw = torch.Generator().manual_seed(seed)
    positions = [at.detach().clone()]
    for step in range(steps):
        made.param_groups[0]["lr"] = optimizer.lr * (1.0 if schedule is None else schedule(Clock(step, steps)))
        made.zero_grad()
        function(at).backward()
        if noise and at.grad is not None:
            at.grad += noise * torch.randn(at.shape, generator=draw, dtype=torch.float64)
        made.step()
        positions.append(at.detach().clone())
    return torch.stack(positions)


def steps_until(values: Sequence[float], limit: float) -> int | None:
    """The first step at which a value is below the limit; None where none is."""
    return next((step for step, value in enumerate(values) if value < limit), None)


def said(steps: int | None, of: int) -> str:
    """A number of steps, or that it was not reached."""
    return f"not in {of:,}" if steps is None else f"{steps:,}"


def series(name: str, values: Sequence[float], colour: int, *, every: int = 1) -> Line:
    """A line of a chart over 0, 1, 2, ..."""
    points = [(float(step), float(value)) for step, value in enumerate(values) if step % every == 0]
    return Line(name=name, points=points, kind=f"c{colour}")


def heights(function: Function, x: Sequence[float], y: Sequence[float]) -> list[list[float]]:
    """The function over a grid, a row for each y."""
    across, up = torch.meshgrid(
        torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64), indexing="xy"
    )
    return function(torch.stack([across, up], -1)).tolist()


def grid_of(low: float, high: float, count: int = 41) -> list[float]:
    """`count` numbers at even distances."""
    return torch.linspace(low, high, count, dtype=torch.float64).tolist()
