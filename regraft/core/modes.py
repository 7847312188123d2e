"""Frozen means frozen: which parameters train, and which modules stay in eval mode while the rest is training."""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import contextmanager

from torch import nn


def set_trainable(model: nn.Module, names: Collection[str] | None) -> None:
    """Let exactly the named parameters train; None keeps what `requires_grad` says now.

    A module that holds parameters none of which trains is marked `frozen`: it and all within it (dropout, running
    statistics) stay in eval mode, see `train_mode`.
    """
    if names is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters:  # what holds none, such as a dropout layer, follows the module it is in
            module.frozen = not any(p.requires_grad for p in parameters)  # type: ignore[assignment]


def train_mode(model: nn.Module) -> None:
    """Training mode, except for modules marked `frozen` or `steady` and all they hold.

    `steady` modules train their weights in eval mode: dropout is off and running statistics stand still.
    """
    model.train()
    for module in model.modules():
        if getattr(module, "frozen", False) or getattr(module, "steady", False):
            module.eval()


@contextmanager
def eval_mode(model: nn.Module) -> Generator[None]:
    """Eval mode for all of the model inside the block; after it every module is in the mode it was in.

    Module by module, because some may belong to another model that is training, as those above a cut do.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
