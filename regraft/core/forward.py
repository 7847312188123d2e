"""How a model is called on a batch, everywhere: it takes the keys it declares as `inputs`, or plainly `x`."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from regraft.core.values import Batch


def inputs_of(model: nn.Module) -> tuple[str, ...]:
    """Batch keys the model is called on: its `inputs` attribute, or ("x",) for a plain module."""
    return cast(tuple[str, ...], getattr(model, "inputs", ("x",)))


def forward(model: nn.Module, batch: Batch, prefix: str = "") -> Tensor:
    """Output of the model on a batch: logits (N, C), or (N, 1) for regression.

    Args:
        model: called by keyword when it declares `inputs`, else on `x` alone.
        batch: holds the model's inputs, each key with `prefix` in front (such as `target_`).
        prefix: which role of the batch is meant; empty for the examples themselves.
    """
    if hasattr(model, "inputs"):
        return model(**{key: batch[prefix + key] for key in inputs_of(model)})
    return model(batch[prefix + "x"])
