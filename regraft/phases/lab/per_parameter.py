"""One rate for all parameters: how differently far it moves the tensors of a network, and what adaptive steps do about it."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from regraft.optim.optimizers import SGD, Adam, Optimizer
from regraft.phases.lab.parts import Demonstration, Table

WIDTHS, ROWS = (16, 32, 32, 32, 32, 32, 4), 256


def network(seed: int) -> nn.Sequential:
    """Six layers with sigmoids between them, whose gradients shrink from layer to layer on the way down."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        layers = [layer for a, b in pairwise(WIDTHS) for layer in (nn.Linear(a, b), nn.Sigmoid())]
    return nn.Sequential(*layers[:-1]).double()


def moves(optimizer: Optimizer, seed: int) -> dict[str, float]:
    """|change| / |weights| of every matrix in the first step."""
    model, draw = network(seed), torch.Generator().manual_seed(seed)
    x, y = torch.randn(ROWS, WIDTHS[0], generator=draw, dtype=torch.float64), torch.arange(ROWS) % WIDTHS[-1]
    named = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    before: dict[str, Tensor] = {name: p.detach().clone() for name, p in named.items()}
    made = optimizer.build(named, {})
    nn.functional.cross_entropy(model(x), y).backward()
    made.step()
    return {
        f"layer {k}": float((p.detach() - before[n]).norm() / before[n].norm())
        for k, (n, p) in enumerate(named.items(), 1)
    }


def show(seed: int = 0) -> Demonstration:
    """The first step of SGD and of Adam in a network of six layers."""
    found = {"SGD": moves(SGD(lr=0.1), seed), "Adam": moves(Adam(lr=1e-3), seed)}
    spread = {name: max(values.values()) / min(values.values()) for name, values in found.items()}
    top, bottom = "layer 6", "layer 1"
    return Demonstration(
        title="One learning rate for all parameters",
        about="A network of six layers with sigmoids, whose gradients shrink on the way down. Shown is how far the "
        "first step moves "
        "each layer's weights, as a share of their length.",
        findings=(
            f"One rate of SGD moves {top} by {found['SGD'][top]:.1e} of its weights and {bottom} by "
            f"{found['SGD'][bottom]:.1e}: "
            f"{spread['SGD']:,.0f} times less.",
            f"Adam's steps do not depend on the size of gradients; its layers differ by a factor of {spread['Adam']:.1f}.",
            "Rates per layer are the other answer: the technique `Discriminative` gives lower blocks lower ones, on purpose.",
        ),
        numbers={"moves": found, "spread": spread},
        tables=(
            Table(
                columns=("", *found),
                rows=[(layer, *(f"{values[layer]:.1e}" for values in found.values())) for layer in found["SGD"]],
            ),
        ),
        recipe="techniques:\n  - Discriminative",
    )
