"""The loss around a point in weight space: slices along filter-normalised directions, and numbers for how sharp a minimum is.

Pure functions of a loss `f(weights) -> ()` over tensors by name; nothing here knows of models or data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from regraft.optim.ascent import ascent

Weights = Mapping[str, Tensor]
LossOf = Callable[[Weights], Tensor]  # () differentiable by every weight
TINY = 1e-12


def filter_normalised(weights: Weights, generator: torch.Generator) -> dict[str, Tensor]:
    """A random direction whose filters are as long as those of the weights; 0 for vectors, such as biases and norms.

    Li et al., 2018, arXiv:1712.09913, section 4: d <- d / |d| |w| for each filter, a slice along a tensor's first dimension. So a
    network whose layers are scaled, which computes the same after a ReLU, gets the same picture.
    """
    drawn = {name: torch.randn(w.shape, generator=generator, dtype=torch.float64) for name, w in weights.items()}
    return {name: _scaled(drawn[name].to(w), w) for name, w in weights.items()}


def _scaled(direction: Tensor, weight: Tensor) -> Tensor:
    if weight.ndim < 2:
        return torch.zeros_like(weight)
    flat, like = direction.flatten(1), weight.detach().flatten(1)
    return (flat / (flat.norm(dim=1, keepdim=True) + TINY) * like.norm(dim=1, keepdim=True)).reshape(weight.shape)


def across(direction: Weights, other: Weights) -> dict[str, Tensor]:
    """The part of a direction at right angles to another one, over all tensors together."""
    share = _dot(direction, other) / (_dot(other, other) + TINY)
    return {name: direction[name] - share * other[name] for name in direction}


def moved(weights: Weights, *steps: tuple[float, Weights]) -> dict[str, Tensor]:
    """The weights plus multiples of directions."""
    out = dict(weights)
    for far, direction in steps:
        out = {name: w + far * direction[name] for name, w in out.items()}
    return out


@torch.no_grad()
def line(loss: LossOf, weights: Weights, direction: Weights, at: Sequence[float]) -> list[float]:
    """The loss at the weights plus each multiple of the direction."""
    return [float(loss(moved(weights, (a, direction)))) for a in at]


@torch.no_grad()
def plane(
    loss: LossOf, weights: Weights, directions: tuple[Weights, Weights], at: Sequence[float]
) -> list[list[float]]:
    """The loss over a square: `plane(...)[i][j]` at `at[j]` times the first direction and `at[i]` times the second."""
    across_, up = directions
    return [[float(loss(moved(weights, (x, across_), (y, up)))) for x in at] for y in at]


def gradient(loss: LossOf, weights: Weights) -> dict[str, Tensor]:
    """The gradient of the loss by every weight; 0 where it does not depend on one."""
    leaves = _leaves(weights)
    return _named(leaves, torch.autograd.grad(loss(leaves), list(leaves.values()), allow_unused=True))


def epsilon_sharpness(loss: LossOf, weights: Weights, rho: float) -> float:
    """How much higher the loss is at the worst point within `rho`, found by one step of ascent.

    Foret et al., 2021, arXiv:2010.01412, eq. 2; the ball is one of the L2 norm over all weights together.
    """
    slope = gradient(loss, weights)
    steps = ascent([w.detach() for w in weights.values()], list(slope.values()), rho)
    with torch.no_grad():
        worst = moved(weights, (1.0, dict(zip(weights, steps, strict=True))))
        return float(loss(worst)) - float(loss(weights))


def hessian_times(loss: LossOf, weights: Weights, vector: Weights) -> dict[str, Tensor]:
    """The Hessian of the loss times a vector, without the Hessian. Pearlmutter, 1994, Neural Computation 6(1)."""
    leaves = _leaves(weights)
    slopes = torch.autograd.grad(loss(leaves), list(leaves.values()), create_graph=True, allow_unused=True)
    parts = [(s * vector[name]).sum() for name, s in zip(leaves, slopes, strict=True) if s is not None]
    inner = torch.stack(parts).sum()
    if not inner.requires_grad:  # a loss that is linear in the weights
        return {name: torch.zeros_like(w) for name, w in leaves.items()}
    return _named(leaves, torch.autograd.grad(inner, list(leaves.values()), allow_unused=True))


def largest_eigenvalue(loss: LossOf, weights: Weights, *, steps: int, generator: torch.Generator) -> float:
    """The largest eigenvalue of the Hessian, from below, by Lanczos' method with every vector kept orthogonal.

    After as many steps as there are weights it is exact; after 20 to 30 usually to a percent. Golub and Van Loan, 2013,
    section 10.3.
    """
    flat = sum(w.numel() for w in weights.values())
    first = torch.randn(flat, generator=generator, dtype=torch.float64)
    basis, alphas, betas = [first / first.norm()], list[float](), list[float]()
    for _ in range(min(steps, flat)):
        image = _flat(hessian_times(loss, weights, _shaped(basis[-1], weights)))
        alphas.append(float(image @ basis[-1]))
        for _ in range(2):  # twice is enough
            for vector in basis:
                image = image - (image @ vector) * vector
        length = float(image.norm())
        if length < 1e-10 * max(1e-30, *map(abs, alphas)):
            break
        betas.append(length)
        basis.append(image / length)
    count = len(alphas)
    small = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    for at, beta in enumerate(betas[: count - 1]):
        small[at, at + 1] = small[at + 1, at] = beta
    return float(torch.linalg.eigvalsh(small)[-1])


@torch.no_grad()
def noise_rise(loss: LossOf, weights: Weights, *, share: float, draws: int, generator: torch.Generator) -> float:
    """How much higher the loss is on average at the weights plus filter-normalised Gaussian noise.

    `share` is the length of the noise on each filter over that of the filter. It is the mean over random directions where
    `epsilon_sharpness` is the worst one.
    """
    here = float(loss(weights))
    found = [float(loss(moved(weights, (share, filter_normalised(weights, generator))))) for _ in range(draws)]
    return sum(found) / draws - here


def _leaves(weights: Weights) -> dict[str, Tensor]:
    return {name: w.detach().clone().requires_grad_() for name, w in weights.items()}


def _named(leaves: Weights, grads: Sequence[Tensor | None]) -> dict[str, Tensor]:
    found = zip(leaves.items(), grads, strict=True)
    return {name: torch.zeros_like(w) if g is None else g.detach() for (name, w), g in found}


def _dot(one: Weights, other: Weights) -> Tensor:
    return torch.stack([(one[name] * other[name]).sum() for name in one]).sum()


def _flat(named: Weights) -> Tensor:
    return torch.cat([value.flatten() for value in named.values()]).double()


def _shaped(flat: Tensor, like: Weights) -> dict[str, Tensor]:
    parts = flat.split([w.numel() for w in like.values()])
    return {name: part.reshape(w.shape).to(w) for (name, w), part in zip(like.items(), parts, strict=True)}
