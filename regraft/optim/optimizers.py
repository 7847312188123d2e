"""Optimizers as data: torch's own, fused where torch has a fused step for the parameters' device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from regraft.config.spec import Named
from regraft.optim.param_groups import param_groups


class Optimizer(Named):
    """A torch optimizer and its options; `lr` is the rate at scale 1 before the schedule."""

    family: ClassVar[str] = "optimizer"

    lr: float = Field(default=1e-3, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)

    def build(self, named: Mapping[str, nn.Parameter], scales: Mapping[str, float]) -> torch.optim.Optimizer:
        """The optimizer over the named parameters, with their learning rates scaled by name."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is built")


class AdamW(Optimizer):
    """Adam with decoupled weight decay. Loshchilov and Hutter, 2019, arXiv:1711.05101."""

    lr: float = Field(default=1e-3, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)

    def build(self, named: Mapping[str, nn.Parameter], scales: Mapping[str, float]) -> torch.optim.Optimizer:
        """A fused `torch.optim.AdamW`."""
        groups = param_groups(named, lr=self.lr, weight_decay=self.weight_decay, scales=scales)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)


class Adam(Optimizer):
    """Adam; `weight_decay` is an L2 penalty in the gradient. Kingma and Ba, 2015, arXiv:1412.6980."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)

    def build(self, named: Mapping[str, nn.Parameter], scales: Mapping[str, float]) -> torch.optim.Optimizer:
        """A fused `torch.optim.Adam`."""
        groups = param_groups(named, lr=self.lr, weight_decay=self.weight_decay, scales=scales)
        return torch.optim.Adam(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)


class SGD(Optimizer):
    """Stochastic gradient descent, with heavy-ball or Nesterov momentum. Sutskever et al., 2013."""

    lr: float = Field(default=0.01, ge=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    nesterov: bool = False

    def build(self, named: Mapping[str, nn.Parameter], scales: Mapping[str, float]) -> torch.optim.Optimizer:
        """A fused `torch.optim.SGD`."""
        groups = param_groups(named, lr=self.lr, weight_decay=self.weight_decay, scales=scales)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, fused=True)
