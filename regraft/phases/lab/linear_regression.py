"""Linear regression by gradient descent: the gradient by hand, and where it ends against the closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from regraft.optim.optimizers import SGD
from regraft.phases.lab.parts import Chart, Demonstration, Table, series, walk

ROWS, STEPS, RATE = 100, 200, 0.1


def data(seed: int) -> tuple[Tensor, Tensor]:
    """X (N, 2), the second column 1, and y = 2 x + 1 + noise (N,)."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, generator=draw, dtype=torch.float64)
    y = 2 * x + 1 + 0.5 * torch.randn(ROWS, generator=draw, dtype=torch.float64)
    return torch.stack([x, torch.ones_like(x)], 1), y


def loss(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """Half the mean squared error."""
    return (x @ w - y).square().mean() / 2


def analytic(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """Its gradient, X^T (X w - y) / N."""
    return x.T @ (x @ w - y) / len(y)


def show(seed: int = 0) -> Demonstration:
    """A line through a hundred points, from zero."""
    x, y = data(seed)
    path = walk(lambda w: loss(x, y, w), (0.0, 0.0), SGD(lr=RATE), STEPS)
    closed = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    losses = [float(loss(x, y, w)) for w in path]
    apart = 0.0
    for w in path[:20]:
        leaf = w.clone().requires_grad_()
        (by_autograd,) = torch.autograd.grad(loss(x, y, leaf), leaf)
        apart = max(apart, float((by_autograd - analytic(x, y, w)).norm() / by_autograd.norm()))
    distance = float((path[-1] - closed).norm())
    return Demonstration(
        title="Linear regression by gradient descent",
        about=f"{ROWS} points of y = 2 x + 1 with noise; the loss is half the mean squared error, its gradient Xᵀ(Xw "
        f"- y) / N, "
        f"the step {RATE:g} times that, from w = 0. The minimum is known: (XᵀX)⁻¹ Xᵀy.",
        findings=(
            f"The gradient by hand and that of autograd agree to a relative {max(apart, 1e-12):.0e}.",
            f"After {STEPS} steps slope and intercept are {path[-1][0]:.4f} and {path[-1][1]:.4f}, those of the closed form "
            f"{closed[0]:.4f} and {closed[1]:.4f}.",
        ),
        numbers={"gradients_apart": apart, "found": path[-1].tolist(), "closed": closed.tolist(), "distance": distance},
        charts=(
            Chart(
                title="Loss",
                lines=[series("loss", losses[:80], 0)],
                x_label="Step",
                y_label="Half the mean squared error",
            ),
        ),
        tables=(
            Table(
                columns=("step", "slope", "intercept", "loss"),
                rows=[
                    (str(k), f"{path[k][0]:.4f}", f"{path[k][1]:.4f}", f"{losses[k]:.5f}")
                    for k in (0, 1, 10, 50, STEPS)
                ],
            ),
        ),
        recipe="train: {batch_size: 100000, optimizer: {SGD: {lr: 0.1}}}",
    )
