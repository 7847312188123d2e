"""Stochastic gradient descent: the gradient of one example is wrong each time and right on average."""

from __future__ import annotations

import torch

from regraft.optim.optimizers import SGD
from regraft.phases.lab.linear_regression import data, loss
from regraft.phases.lab.parts import Chart, Demonstration, series, walk

STEPS = 300


def show(seed: int = 0) -> Demonstration:
    """The hundred gradients of a linear regression, and a run on one of them at a time."""
    x, y = data(seed)
    at = torch.zeros(2, dtype=torch.float64)
    single = (x @ at - y)[:, None] * x
    leaf = at.clone().requires_grad_()
    (whole,) = torch.autograd.grad(loss(x, y, leaf), leaf)
    apart = float((single.mean(0) - whole).norm() / whole.norm())
    against = float(((single @ whole) < 0).double().mean())
    order = torch.randint(len(y), (STEPS + 1,), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn = iter(order)

    def one(w: torch.Tensor) -> torch.Tensor:
        row = next(drawn)
        return (x[row] @ w - y[row]) ** 2 / 2

    stochastic = walk(one, (0.0, 0.0), SGD(lr=0.1), STEPS)
    full = walk(lambda w: loss(x, y, w), (0.0, 0.0), SGD(lr=0.1), STEPS)
    losses = {
        "all examples": [float(loss(x, y, w)) for w in full],
        "one example": [float(loss(x, y, w)) for w in stochastic],
    }
    floor = sum(losses["one example"][-100:]) / 100 - losses["all examples"][-1]
    return Demonstration(
        title="One example at a time",
        about="Linear regression on a hundred points (see linear-regression), once with the gradient of all of them "
        "and once with that "
        "of one drawn at random (Robbins and Monro, 1951).",
        findings=(
            f"The mean of the single gradients is the full gradient, to a relative {max(apart, 1e-12):.0e}.",
            f"{against:.0%} of the single gradients point uphill for the whole.",
            f"A step on one example costs a hundredth; with a constant rate the loss does not settle, and stays "
            f"{floor:.3f} above the "
            "least on average. Rates whose squares have a finite sum settle.",
        ),
        numbers={"apart": apart, "uphill": against, "floor": floor},
        charts=(
            Chart(
                title="Loss over all examples",
                lines=[series(n, v, k, every=2) for k, (n, v) in enumerate(losses.items())],
                x_label="Step",
                y_label="Half the mean squared error",
            ),
        ),
        recipe="train: {batch_size: 1, optimizer: SGD, schedule: {Power: {exponent: 0.6}}}",
    )
