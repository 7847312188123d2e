"""Heads fitted to convergence: L2-regularised softmax, logistic and ridge regression on a feature matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from regraft.models.heads import standardisation


def in_row_space(features: Tensor) -> Tensor:
    """Standardised features (N, F) in an orthonormal basis of the space their rows span, (N, min(N, F)).

    An L2-penalised linear fit depends on inner products alone, so it is the same function there and costs F / N less.
    """
    mean, deviation = (part.float() for part in standardisation(features))
    x = features.float().sub(mean).div_(deviation)
    if x.shape[0] >= x.shape[1]:
        return x
    values, vectors = torch.linalg.eigh(x @ x.T)
    return vectors * values.clamp(min=0).sqrt()


@dataclass(frozen=True, kw_only=True)
class Head:
    """A linear head on standardised features: `((x - mean) / deviation) @ weight.T + bias`."""

    weight: Tensor  # (C, F)
    bias: Tensor  # (C,)
    mean: Tensor  # (F,)
    deviation: Tensor  # (F,)

    def logits(self, features: Tensor) -> Tensor:
        """(N, C) from raw features (N, F)."""
        weight = self.weight / self.deviation
        return features.float() @ weight.T + (self.bias - weight @ self.mean)


def fit_head(
    features: Tensor,
    targets: Tensor,
    *,
    task: str,
    num_outputs: int,
    l2: float,
    start: Head | None = None,
    max_iterations: int = 100,
) -> Head:
    """The head that minimises mean loss + l2/2 |weight|^2 on standardised features, the bias unpenalised.

    Args:
        features: (N, F) raw.
        targets: class ids (N,) int64, or 0/1 (N, C) for multi-label, or numbers (N,) for regression.
        task: binary, multiclass, multilabel or regression.
        num_outputs: width C of the head; a class without examples gets a bias that rules it out.
        l2: strength of the penalty.
        start: a head fitted before, to start from; its own standardisation is not used.
        max_iterations: of L-BFGS (Liu and Nocedal, 1989) with a strong Wolfe line search; regression is solved directly.
    """
    mean, deviation = (part.float() for part in standardisation(features))
    x = features.float().sub(mean).div_(deviation)
    weight, bias = solve(
        x, targets, task=task, num_outputs=num_outputs, l2=l2, start=start, max_iterations=max_iterations
    )
    return Head(weight=weight, bias=bias, mean=mean, deviation=deviation)


def solve(
    x: Tensor,
    targets: Tensor,
    *,
    task: str,
    num_outputs: int,
    l2: float,
    start: Head | None = None,
    max_iterations: int = 100,
) -> tuple[Tensor, Tensor]:
    """Weight (C, F) and bias (C,) of the penalised fit on features as they are; the arguments are those of `fit_head`."""
    if task == "regression":
        return _ridge(x, targets.float(), l2)
    return _logistic(x, targets, num_outputs, task, l2, start, max_iterations)


def _ridge(x: Tensor, y: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """Closed form of mean squared error / 2 + l2/2 |w|^2 in float64."""
    x, y = x.double(), y.double()
    centre, middle = x.mean(0), y.mean()
    x = x - centre
    gram = x.T @ x / len(x) + l2 * torch.eye(x.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, x.T @ (y - middle) / len(x))
    return weight[None].float(), (middle - weight @ centre)[None].float()


def _logistic(
    x: Tensor, targets: Tensor, outputs: int, task: str, l2: float, start: Head | None, max_iterations: int
) -> tuple[Tensor, Tensor]:
    half = _bf16_is_faster(x)
    matrix = x.bfloat16() if half else x
    theta = torch.zeros(outputs, x.shape[1] + 1) if start is None else torch.cat([start.weight, start.bias[:, None]], 1)
    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=max_iterations,
        history_size=10,
        tolerance_grad=1e-5,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )
    rows = torch.arange(len(x))

    @torch.no_grad()
    def closure() -> float:
        weight, bias = theta[:, :-1], theta[:, -1]
        logits = F.linear(matrix, weight.to(matrix.dtype)).float() + bias
        if task == "multilabel":
            loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(x)
            residual = (logits.sigmoid() - targets) / len(x)
        else:
            loss = F.cross_entropy(logits, targets)
            residual = logits.softmax(-1)
            residual[rows, targets] -= 1.0
            residual /= len(x)
        slope = (residual.T.to(matrix.dtype) @ matrix).float() + l2 * weight
        theta.grad = torch.cat([slope, residual.sum(0)[:, None]], 1)
        return float(loss + 0.5 * l2 * weight.square().sum())

    optimizer.step(closure)  # type: ignore[arg-type]
    return theta[:, :-1].contiguous(), theta[:, -1].clone()


def _bf16_is_faster(x: Tensor) -> bool:
    """Matrices this large are worth rounding to bf16 where the processor multiplies bf16; parameters and sums stay fp32."""
    return x.numel() > 1_000_000 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
