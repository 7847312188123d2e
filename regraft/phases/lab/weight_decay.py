"""Weight decay and an L2 penalty: one thing under SGD, two under Adam."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regraft.optim.optimizers import SGD, Adam, AdamW, Optimizer
from regraft.phases.lab.parts import Chart, Demonstration, Table, series

STEPS, DECAY, SCALES = 400, 0.1, (10.0, 0.1)
TARGET = torch.tensor([[1.0, 1.0]], dtype=torch.float64)


def descend(optimizer: Optimizer, *, penalty: float = 0.0) -> Tensor:
    """Weights (steps + 1, 2) under the loss sum of c_i (w_i - 1)^2 / 2, with an L2 penalty in the loss if asked for."""
    curvature = torch.tensor([SCALES], dtype=torch.float64)
    w = nn.Parameter(torch.tensor([[2.0, 2.0]], dtype=torch.float64))  # a matrix: vectors have no decay in regraft
    made, positions = optimizer.build({"w": w}, {}), [w.detach().clone()]
    for _ in range(STEPS):
        made.zero_grad()
        loss = (curvature * (w - TARGET) ** 2).sum() / 2 + penalty * w.square().sum() / 2
        loss.backward()
        made.step()
        positions.append(w.detach().clone())
    return torch.cat(positions)


def show(seed: int = 0) -> Demonstration:
    """Four runs on a loss with a steep and a flat direction; nothing is drawn at random."""
    runs = {
        "SGD, decay": descend(SGD(lr=0.05, weight_decay=DECAY)),
        "SGD, L2 in the loss": descend(SGD(lr=0.05), penalty=DECAY),
        "AdamW, decay": descend(AdamW(lr=0.05, weight_decay=DECAY)),
        "Adam, L2 in the loss": descend(Adam(lr=0.05), penalty=DECAY),
        "Adam, weight_decay": descend(Adam(lr=0.05, weight_decay=DECAY)),
    }
    apart = {
        "SGD": float((runs["SGD, decay"] - runs["SGD, L2 in the loss"]).abs().max()),
        "Adam": float((runs["AdamW, decay"] - runs["Adam, L2 in the loss"]).abs().max()),
        "Adam's own weight_decay": float((runs["Adam, weight_decay"] - runs["Adam, L2 in the loss"]).abs().max()),
    }
    ends = {name: path[-1].tolist() for name, path in runs.items()}
    return Demonstration(
        title="Weight decay is not an L2 penalty",
        about=f"The loss is Σ cᵢ (wᵢ - 1)²/2 with c = {SCALES[0]:g} and {SCALES[1]:g}, λ = {DECAY:g}. Decay takes "
        f"lr·λ·w off a weight in "
        "every step; a penalty adds λ·w to its gradient, which Adam then divides by the size of gradients, so that "
        "weights with "
        "large gradients are held back less (Loshchilov and Hutter, 2019, arXiv:1711.05101, section 2).",
        findings=(
            f"Under SGD the two agree in every step: never more than {max(apart['SGD'], 1e-12):.0e} apart.",
            f"Under Adam they are {apart['Adam']:.2f} apart at most: the flat weight ends at "
            f"{ends['AdamW, decay'][1]:.2f} with decay and at "
            f"{ends['Adam, L2 in the loss'][1]:.2f} with the penalty.",
            "`Adam: {weight_decay: ...}` is the penalty; `AdamW` is the decay.",
        ),
        numbers={"apart": apart, "ends": ends},
        charts=(
            Chart(
                title="The weight in the flat direction",
                lines=[series(n, p[:, 1].tolist(), k, every=4) for k, (n, p) in enumerate(list(runs.items())[:4])],
                x_label="Step",
                y_label="w",
            ),
        ),
        tables=(
            Table(
                columns=("", "steep weight at the end", "flat weight at the end"),
                rows=[(name, f"{a:.4f}", f"{b:.4f}") for name, (a, b) in ends.items()],
            ),
        ),
        recipe="train: {optimizer: {AdamW: {weight_decay: 0.01}}}",
    )
