"""Optimizers as data: torch's own, fused where torch has a fused step for the parameters' device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from regraft.config.spec import Named
from regraft.optim.param_groups import param_groups


class Optimizer(Named):
    """A torch optimizer and its options; `lr` is the rate at scale 1 before the schedule."""

    family: ClassVar[str] = "optimizer"
    written: ClassVar[frozenset[str]] = frozenset({"lr"})  # without it a rate is chosen, see phases.resolve

    lr: float = Field(default=1e-3, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)

    def build(self, named: Mapping[str, nn.Parameter], scales: Mapping[str, float]) -> torch.optim.Optimizer:
        """The optimizer over the named parameters, with their learning rates scaled by name."""
        return self.over(param_groups(named, lr=self.lr, weight_decay=self.weight_decay, scales=scales))

    def over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer over parameter groups that hold their rate and decay."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is built")

    def state_bytes(self, named: Mapping[str, nn.Parameter]) -> int:
        """Bytes the optimizer will keep beside the parameters and their gradients, known before a step is made."""
        return sum(parameter.element_size() * self.state_numel(tuple(parameter.shape)) for parameter in named.values())

    def state_numel(self, shape: tuple[int, ...]) -> int:
        """Numbers kept for a parameter of this shape."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it keeps")


class AdamW(Optimizer):
    """Adam with decoupled weight decay: weights shrink by lr x decay a step, whatever their gradient.

    Loshchilov and Hutter, 2019, arXiv:1711.05101, algorithm 2.
    """

    lr: float = Field(default=1e-3, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)

    def over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """A fused `torch.optim.AdamW`."""
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)

    def state_numel(self, shape: tuple[int, ...]) -> int:
        """Two moments."""
        return 2 * numel(shape)


class Adam(Optimizer):
    """Adam; `weight_decay` is an L2 penalty in the gradient. Kingma and Ba, 2015, arXiv:1412.6980.

    A GAN is usually trained with `betas: [0.5, 0.999]` (Radford et al., 2016, arXiv:1511.06434).
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)

    def over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """A fused `torch.optim.Adam`."""
        return torch.optim.Adam(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)

    def state_numel(self, shape: tuple[int, ...]) -> int:
        """Two moments."""
        return 2 * numel(shape)


class SGD(Optimizer):
    """Stochastic gradient descent, with heavy-ball or Nesterov momentum. Sutskever et al., 2013.

    Full-batch gradient descent is SGD with a `batch_size` of all examples, the textbook's SGD one of 1.
    """

    lr: float = Field(default=0.01, ge=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    nesterov: bool = False

    def over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """A fused `torch.optim.SGD`."""
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, fused=True)

    def state_numel(self, shape: tuple[int, ...]) -> int:
        """A buffer where there is momentum, else nothing."""
        return numel(shape) if self.momentum else 0


class Adagrad(Optimizer):
    """Rates that fall with the sum of a weight's squared gradients so far. Duchi et al., 2011, JMLR 12.

    Made for sparse gradients: what is seldom touched keeps a high rate. The sum never falls, so training slows down for good.
    """

    lr: float = Field(default=0.01, ge=0)
    eps: float = Field(default=1e-10, gt=0)

    def over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """A fused `torch.optim.Adagrad`."""
        return torch.optim.Adagrad(groups, lr=self.lr, eps=self.eps, fused=True)

    def state_numel(self, shape: tuple[int, ...]) -> int:
        """The sum of squares."""
        return numel(shape)


class Adadelta(Optimizer):
    """Steps in proportion to the size of earlier steps over that of gradients, so that no rate needs tuning.

    Zeiler, 2012, arXiv:1212.5701, algorithm 1.
    """

    lr: float = Field(default=1.0, ge=0)
    rho: float = Field(default=0.9, ge=0, lt=1)
    eps: float = Field(default=1e-6, gt=0)

    def over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """A `torch.optim.Adadelta`."""
        return torch.optim.Adadelta(groups, lr=self.lr, rho=self.rho, eps=self.eps)

    def state_numel(self, shape: tuple[int, ...]) -> int:
        """Running means of squared gradients and of squared steps."""
        return 2 * numel(shape)


class RMSprop(Optimizer):
    """Gradients over the root of a running mean of their squares. Tieleman and Hinton, 2012, Coursera lecture 6.5.

    The usual optimizer of Wasserstein GANs with clipped weights, without momentum (Arjovsky et al., 2017, arXiv:1701.07875).
    """

    lr: float = Field(default=0.01, ge=0)
    alpha: float = Field(default=0.99, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    centered: bool = False

    def over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """A `torch.optim.RMSprop`."""
        return torch.optim.RMSprop(
            groups, lr=self.lr, alpha=self.alpha, eps=self.eps, momentum=self.momentum, centered=self.centered
        )

    def state_numel(self, shape: tuple[int, ...]) -> int:
        """The running mean, and buffers for momentum and the mean gradient where they are used."""
        return numel(shape) * (1 + bool(self.momentum) + self.centered)


class Adafactor(Optimizer):
    """Adam without first moment whose second is kept as row and column means: memory that grows with the sides of a matrix.

    Shazeer and Stern, 2018, arXiv:1804.04235, algorithms 4 and 5; `lr` is the least of what the paper calls relative step size.
    """

    lr: float = Field(default=0.01, ge=0)
    beta2_decay: float = Field(default=-0.8, lt=0)
    d: float = Field(default=1.0, gt=0)

    def over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """A `torch.optim.Adafactor`."""
        return torch.optim.Adafactor(groups, lr=self.lr, beta2_decay=self.beta2_decay, d=self.d)

    def state_numel(self, shape: tuple[int, ...]) -> int:
        """A row and a column of means for each matrix; a mean for each entry of a vector."""
        if len(shape) < 2:
            return numel(shape)
        return numel(shape[:-1]) + numel((*shape[:-2], shape[-1]))


def numel(shape: tuple[int, ...]) -> int:
    """Entries of a tensor of this shape."""
    count = 1
    for side in shape:
        count *= side
    return count
