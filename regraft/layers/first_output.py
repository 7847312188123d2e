"""What a block hands on, with its first tensor changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from regraft.errors import ModelError


def with_first_changed(block: nn.Module, output: Any, change: Callable[[Tensor], Tensor], *, asked_by: str) -> Any:
    """`output` of a block with `change` applied to it, or to the tensor it starts with where it is a tuple.

    Raises:
        ModelError: it is neither; `asked_by` says who needs one of them.
    """
    if isinstance(output, Tensor):
        return change(output)
    if type(output) is tuple and output and isinstance(output[0], Tensor):
        return (change(output[0]), *output[1:])
    raise ModelError(
        f"{asked_by} need a block that returns a tensor or a tuple that starts with one, got {type(output).__name__} from "
        f"{type(block).__name__}; use LoRA there"
    )
