"""Heads fitted to convergence: L2-regularised softmax, logistic and ridge regression on standardised features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from regraft.models.heads import standardisation

SETTLED = (
    1e-5  # an L-BFGS step that lowers the loss by less ends the fit: on banking77 and sst2 accuracy stands still before
)
CHUNK = 4096  # rows that are in fp64 at once
ROWS = 1 << 16  # rows that are answered at once
LOGITS = 1 << 24  # logits that are in memory at once during a fit, 64 MiB and as much for their gradient


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a head answers."""

    task: str  # binary, multiclass, multilabel or regression
    num_outputs: int  # C; a class without examples gets a bias that rules it out

    @property
    def iterative(self) -> bool:
        """Is it fitted step by step, so that rounded features do no harm, and not solved directly?"""
        return self.task != "regression"


@dataclass(frozen=True, kw_only=True)
class Standardised:
    """Features as a fit wants them: one matrix, every column of mean 0 and deviation 1 on the rows that decide."""

    x: Tensor  # (N, F) fp32, or bf16 where that is faster
    mean: Tensor  # (F,)
    deviation: Tensor  # (F,)

    @classmethod
    def plain(cls, x: Tensor) -> Standardised:
        """Features (N, F) taken as they are."""
        return cls(x=x, mean=torch.zeros(x.shape[1]), deviation=torch.ones(x.shape[1]))

    def first(self, rows: int) -> Standardised:
        """The first rows of them."""
        return Standardised(x=self.x[:rows], mean=self.mean, deviation=self.deviation)


def standardised(*blocks: Sequence[Tensor], half: bool = False) -> Standardised:
    """Blocks of rows below each other, standardised by the first block.

    Args:
        blocks: of each block of rows its columns (N_b, F_i), side by side; the widths are the same in all blocks.
        half: the matrix may be bf16 where it is large and the processor multiplies bf16; the columns are never copied in fp32.
    """
    rows, widths = [len(block[0]) for block in blocks], [part.shape[1] for part in blocks[0]]
    shape = (sum(rows), sum(widths))
    dtype = torch.bfloat16 if half and _bf16_is_faster(shape) else torch.float32
    x, mean, deviation = torch.empty(shape, dtype=dtype), torch.empty(shape[1]), torch.empty(shape[1])
    at = 0
    for number, width in enumerate(widths):
        columns, row = slice(at, at + width), 0
        centre, scale = standardisation(blocks[0][number])
        mean[columns], deviation[columns] = centre.float(), scale.float()
        for part in (part for block in blocks for part in block[number].split(ROWS)):
            x[row : row + len(part), columns] = (part.float() - mean[columns]).div_(deviation[columns])
            row += len(part)
        at += width
    return Standardised(x=x, mean=mean, deviation=deviation)


def in_row_space(x: Tensor) -> Tensor:
    """Standardised features (N, F) in an orthonormal basis of the space their rows span, (N, min(N, F)).

    An L2-penalised linear fit depends on inner products alone, so it is the same function there and costs F / N less.
    """
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
        weight, bias = self.on_raw()
        return torch.cat([part.float() @ weight.T + bias for part in features.split(ROWS)])

    def on_raw(self) -> tuple[Tensor, Tensor]:
        """Weight (C, F) and bias (C,) of the same head on features that are not standardised."""
        weight = self.weight / self.deviation
        return weight, self.bias - weight @ self.mean


def fit_head(
    features: Standardised,
    targets: Tensor,
    problem: Problem,
    *,
    l2: float,
    start: Head | None = None,
    max_iterations: int = 100,
    tolerance: float = SETTLED,
) -> Head:
    """The head that minimises mean loss + l2/2 |weight|^2 on standardised features, the bias unpenalised.

    Args:
        features: (N, F), from `standardised`.
        targets: class ids (N,) int64, or 0/1 (N, C) for multi-label, or numbers (N,) or (N, T) for regression.
        problem: task and width of the head.
        l2: strength of the penalty.
        start: a head fitted before on features standardised alike, to start from.
        max_iterations: of L-BFGS (Liu and Nocedal, 1989) with a strong Wolfe line search; regression is solved directly.
        tolerance: a step that lowers the loss by less ends the fit.
    """
    if problem.iterative:
        weight, bias = _logistic(features.x, targets, problem, l2, start, max_iterations, tolerance)
    else:
        weight, bias = _ridge(features.x, targets.float(), l2)
    return Head(weight=weight, bias=bias, mean=features.mean, deviation=features.deviation)


def _ridge(x: Tensor, y: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """Closed form of mean squared error / 2 + l2/2 |w|^2 for targets (N,) or (N, T), summed in float64."""
    width = x.shape[1]
    gram, slope = (torch.zeros(shape, dtype=torch.float64) for shape in ((width, width), (width, *y.shape[1:])))
    centre, middle = x.mean(0, dtype=torch.float64), y.double().mean(0)
    for part, values in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        rows = part.double() - centre
        gram.addmm_(rows.T, rows)
        slope += rows.T @ (values.double() - middle)
    gram /= len(x)
    gram.diagonal().add_(l2)
    weight = torch.linalg.solve(gram, slope / len(x))
    return weight.reshape(width, -1).T.float().contiguous(), (middle - centre @ weight).reshape(-1).float()


def _logistic(
    x: Tensor,
    targets: Tensor,
    problem: Problem,
    l2: float,
    start: Head | None,
    max_iterations: int,
    tolerance: float,
) -> tuple[Tensor, Tensor]:
    theta = torch.zeros(problem.num_outputs, x.shape[1] + 1)
    if start is not None:
        theta = torch.cat([start.weight, start.bias[:, None]], 1)
    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=max_iterations,
        history_size=10,
        tolerance_grad=1e-5,
        tolerance_change=tolerance,
        line_search_fn="strong_wolfe",
    )
    most = max(256, LOGITS // problem.num_outputs)

    @torch.no_grad()
    def closure() -> float:
        weight = theta[:, :-1]
        loss, theta.grad = torch.zeros(()), torch.zeros_like(theta)
        for part, answers in zip(x.split(most), targets.split(most), strict=True):
            some, residual = _loss_and_residual(part, answers, theta, problem.task)
            loss += some / len(x)
            residual /= len(x)
            theta.grad[:, :-1] += (residual.T.to(x.dtype) @ part).float()
            theta.grad[:, -1] += residual.sum(0)
        theta.grad[:, :-1] += l2 * weight
        return float(loss + 0.5 * l2 * weight.square().sum())

    optimizer.step(closure)  # type: ignore[arg-type]
    return theta[:, :-1].contiguous(), theta[:, -1].clone()


def _loss_and_residual(x: Tensor, targets: Tensor, theta: Tensor, task: str) -> tuple[Tensor, Tensor]:
    """The summed loss of rows (M, F), and its derivative by the logits (M, C)."""
    logits = F.linear(x, theta[:, :-1].to(x.dtype)).float() + theta[:, -1]
    if task == "multilabel":
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum"), logits.sigmoid() - targets
    rows, log_shares = torch.arange(len(x)), logits.log_softmax(-1)
    loss = -log_shares[rows, targets].sum()
    residual = log_shares.exp_()
    residual[rows, targets] -= 1.0
    return loss, residual


def _bf16_is_faster(shape: tuple[int, int]) -> bool:
    """Matrices this large are worth rounding to bf16 where the processor multiplies bf16; parameters and sums stay fp32."""
    return shape[0] * shape[1] > 1_000_000 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
