"""Another forward for one module, for as long as a stage runs; names of parameters and the state dict stay the module's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

Call = Callable[..., Any]  # (module, *args, **kwargs) -> what the module's forward gives


def own_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What the module's class computes, whatever stands in for it."""
    return type(module).forward(module, *args, **kwargs)


class StandIn:
    """Called in place of `module.forward`. A copy of the module, and a pickled one, goes back to the forward of its class."""

    def __init__(self, module: nn.Module, call: Call) -> None:
        self.module, self.call = module, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The output of `call`; hooks on the module run around it as ever."""
        return self.call(self.module, *args, **kwargs)

    def __reduce__(self) -> tuple[type[StandIn], tuple[nn.Module, Call]]:
        return StandIn, (self.module, own_forward)


def replace_forward(module: nn.Module, call: Call) -> None:
    """From now on the module computes `call(module, *args, **kwargs)`."""
    module.forward = StandIn(module, call)  # type: ignore[method-assign]


def has_stand_in(module: nn.Module) -> bool:
    """Does something stand in for the module's forward?"""
    return isinstance(module.__dict__.get("forward"), StandIn)


def restore_forward(module: nn.Module) -> None:
    """Take the stand-in away, if there is one."""
    if has_stand_in(module):
        del module.forward
