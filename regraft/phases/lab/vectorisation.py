"""A batch at once against one example after the other: the same numbers, in a fraction of the time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from regraft.phases.lab.parts import Demonstration, Table

ROWS, SIDE, REPEATS = 512, 128, 5


def timed(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """(result, median seconds of some repeats after one that does not count)."""
    out, seconds = work(), []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        out = work()
        seconds.append(time.perf_counter() - begin)
    return out, statistics.median(seconds)


def show(seed: int = 0) -> Demonstration:
    """A linear layer and its gradient on 512 examples."""
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randn(ROWS, SIDE, generator=draw), torch.randn(ROWS, SIDE, generator=draw)
    weight = torch.randn(SIDE, SIDE, generator=draw) / SIDE**0.5

    def one_by_one() -> Tensor:
        total = torch.zeros_like(weight)
        for row, target in zip(x, y, strict=True):
            total += torch.outer(weight @ row - target, row)
        return total / ROWS

    def at_once() -> Tensor:
        return (x @ weight.T - y).T @ x / ROWS

    (single, slow), (batch, fast) = timed(one_by_one), timed(at_once)
    apart = float((single - batch).norm() / batch.norm())
    return Demonstration(
        title="A vectorised batch",
        about=f"The gradient of the squared error of a linear layer, {SIDE} to {SIDE}, over {ROWS} examples: as a "
        f"loop over examples, "
        "and as two products of matrices. One product does what a loop does with one call, keeps the weights in the "
        "cache and "
        "uses every lane of the processor.",
        findings=("Both give the same gradient, to the rounding of sums in another order.",),
        measured=(
            f"One by one it takes {1e3 * slow:.2f} ms, at once {1e3 * fast:.3f} ms: {slow / fast:.0f} times faster here.",
        ),
        numbers={"apart": apart, "one_by_one_s": slow, "at_once_s": fast, "ratio": slow / fast},
        tables=(
            Table(
                columns=("", "time", "examples a second"),
                rows=[
                    ("one by one", f"{1e3 * slow:.2f} ms", f"{ROWS / slow:,.0f}"),
                    ("at once", f"{1e3 * fast:.3f} ms", f"{ROWS / fast:,.0f}"),
                ],
                measured=True,
            ),
        ),
        recipe="train: {batch_size: 64}",
    )
