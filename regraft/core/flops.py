"""Counted work: the floating-point operations of a block of code, two for each multiplication with its addition.

It is torch's own counter, which knows matrix products, convolutions and the attention kernels of GPUs; those of processors, which
every transformer here runs through, are added.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop,  # pyright: ignore[reportUnknownVariableType]
    sdpa_flop,  # pyright: ignore[reportUnknownVariableType]
)

Shape = Sequence[int]


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, out_shape: Any = None, **options: Any) -> int:
    """Of queries times keys, and weights times values."""
    return sdpa_flop(query, key, value)


def _attention_backward(
    grad_out: Shape, query: Shape, key: Shape, value: Shape, *_: Any, out_shape: Any = None, **options: Any
) -> int:
    """Of the scores once more, and of the gradients of queries, keys, values and weights."""
    return sdpa_backward_flop(grad_out, query, key, value)


KERNELS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


@contextmanager
def counted() -> Generator[FlopCounterMode]:
    """Counts the block; `get_total_flops()` of what it yields is the number."""
    with FlopCounterMode(display=False, custom_mapping=KERNELS) as counter:
        yield counter
