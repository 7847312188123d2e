"""Parameter groups: which parameters decay, and at which share of the learning rate each is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def param_groups(
    named: Mapping[str, nn.Parameter], *, lr: float, weight_decay: float, scales: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Optimizer groups of parameters that share learning rate and decay, in a fixed order.

    Vectors and scalars (biases, the gains of normalisation layers) do not decay: shrinking them changes the function without
    making it simpler. A parameter whose scale is 0 is left out.

    Args:
        named: the parameters by name.
        lr: learning rate at scale 1.
        weight_decay: decay of matrices and kernels.
        scales: parameter name -> factor on `lr`; 1 where a name is missing.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        scale = scales.get(name, 1.0)
        if scale > 0:
            groups.setdefault((scale, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [{"params": members, "lr": lr * scale, "weight_decay": decay} for (scale, decay), members in groups.items()]
