"""Reading what enters a layer while a model runs."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def captured_input(module: nn.Module) -> Generator[list[Tensor]]:
    """Inside the block, every call of `module` appends its first argument to the list; the hook is gone after it."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()
