"""How a model is called on a batch, everywhere: it takes the keys it declares as `inputs`, or plainly `x`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from regraft.core.values import Batch


def inputs_of(model: nn.Module) -> tuple[str, ...]:
    """Batch keys the model is called on: its `inputs` attribute, or ("x",) for a plain module."""
    return cast(tuple[str, ...], getattr(model, "inputs", ("x",)))


def called_on(model: nn.Module, batch: Batch, prefix: str = "") -> Batch:
    """What the model is called on, under its own names, from a batch that may hold more; `prefix` as in `forward`."""
    return {key: batch[prefix + key] for key in inputs_of(model)}


def forward(model: nn.Module, batch: Batch, prefix: str = "") -> Tensor:
    """Output of the model on a batch: logits (N, C), or (N, 1) for regression.

    Args:
        model: called by keyword when it declares `inputs`, else on `x` alone.
        batch: holds the model's inputs, each key with `prefix` in front (such as `target_`).
        prefix: which role of the batch is meant; empty for the examples themselves.
    """
    inputs = called_on(model, batch, prefix)
    shared = _shared.get()
    if shared is None:
        return _call(model, inputs)
    call = _Call.now(model, inputs)
    for known, output in shared:
        if known.same(call):
            return output
    output = _call(model, inputs)
    shared.append((call, output))
    return output


def _call(model: nn.Module, inputs: Batch) -> Tensor:
    return model(**inputs) if hasattr(model, "inputs") else model(inputs["x"])


# ---- one pass for several readers of the same output

Tell = Callable[[nn.Module, Batch, Tensor], None]


@contextmanager
def shared_forward() -> Generator[Tell]:
    """Inside the block, `forward` runs a model once on the same tensors with the same weights, whoever asks.

    An objective that wraps another and needs the model's output too puts both into one block; blocks nest and share. What
    the block hands out, `tell(model, batch, output)`, makes an output known that was computed as part of a larger batch.
    """
    known = _shared.get()
    calls: list[tuple[_Call, Tensor]] = known if known is not None else []

    def tell(model: nn.Module, batch: Batch, output: Tensor) -> None:
        calls.append((_Call.now(model, called_on(model, batch)), output))

    token = _shared.set(calls)
    try:
        yield tell
    finally:
        _shared.reset(token)


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """What a forward pass depends on. Weights are compared by identity: a functional call swaps them."""

    model: nn.Module
    tensors: tuple[Tensor, ...]
    modes: tuple[bool, bool]

    @classmethod
    def now(cls, model: nn.Module, inputs: Batch) -> _Call:
        return cls(model, (*inputs.values(), *model.parameters()), (model.training, torch.is_grad_enabled()))

    def same(self, other: _Call) -> bool:
        tensors = zip(self.tensors, other.tensors, strict=False)
        return self.model is other.model and self.modes == other.modes and all(a is b for a, b in tensors)


_shared: ContextVar[list[tuple[_Call, Tensor]] | None] = ContextVar("shared", default=None)
