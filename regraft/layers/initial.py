"""Initial weights under which variances survive the way through a deep network: Kaiming, Xavier, orthogonal and LSUV."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regraft.core.modes import eval_mode
from regraft.core.seeding import generator
from regraft.layers.sharing import M, same_tensors

Kind = Literal["kaiming", "xavier", "orthogonal", "lsuv"]
Nonlinearity = Literal["relu", "leaky_relu", "tanh", "linear"]
KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def initialise(weight: Tensor, kind: Kind, *, nonlinearity: Nonlinearity, random: torch.Generator) -> None:
    """Fill a weight (out, ...) in place.

    kaiming: He et al., 2015, arXiv:1502.01852, eq. 10 and 12, N(0, gain^2 / fan_in), which keeps the variance before a ReLU.
    xavier: Glorot and Bengio, 2010, AISTATS, eq. 12, N(0, gain^2 2 / (fan_in + fan_out)).
    orthogonal: Saxe et al., 2014, arXiv:1312.6120; lsuv starts from it, with gain 1.
    """
    gain = nn.init.calculate_gain(nonlinearity)
    if kind == "kaiming":
        nn.init.kaiming_normal_(weight, nonlinearity=nonlinearity, generator=random)
    elif kind == "xavier":
        nn.init.xavier_normal_(weight, gain=gain, generator=random)
    else:
        nn.init.orthogonal_(weight, gain=gain if kind == "orthogonal" else 1.0, generator=random)


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Linear layers and convolutions by name, in the order of registration."""
    return {name: module for name, module in model.named_modules() if isinstance(module, KINDS)}


def initialised(
    model: M, names: Collection[str], kind: Kind, *, nonlinearity: Nonlinearity = "relu", seed: int = 0
) -> M:
    """The model with new weights, and biases of zero, in the named layers; the given one keeps its own.

    Each layer draws from `seed` and its place, so that leaving one out changes no other. What requires no gradient stays.
    """
    made = same_tensors(model)
    for place, (name, layer) in enumerate(layers_of(made).items()):
        if name not in names:
            continue
        weight, bias = layer.weight, layer.bias
        if isinstance(weight, nn.Parameter) and weight.requires_grad:
            fresh = torch.empty_like(weight, memory_format=torch.contiguous_format, device="cpu")
            initialise(fresh, kind, nonlinearity=nonlinearity, random=generator(seed, place))
            layer.weight = nn.Parameter(fresh.to(weight.device))
        if isinstance(bias, nn.Parameter) and bias.requires_grad:
            layer.bias = nn.Parameter(torch.zeros_like(bias))
    return made


@torch.no_grad()
def unit_variance(
    model: nn.Module, names: Collection[str], run: Callable[[nn.Module], object], *, tolerance: float, most: int
) -> dict[str, float]:
    """Scale the named layers, one after the other as they are called, until their outputs have variance 1; what it became.

    Layer-sequential unit-variance: Mishkin and Matas, 2016, arXiv:1511.06422, algorithm 1, in one pass: each layer is scaled as
    it is called and hands on what it gives then. Layers that are not called, that hand on a constant or whose weight does not
    train stay; one that is called several times is scaled at the first call.

    Args:
        model: changed in place; run once in eval mode.
        names: of its layers.
        run: calls the model on a batch.
        tolerance: how far from 1 a variance may stay.
        most: times a layer is scaled at most.
    """
    found: dict[str, float] = {}

    def scale(name: str) -> Callable[..., Any]:
        def hook(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            if name in found or not isinstance(layer.weight, nn.Parameter) or not layer.weight.requires_grad:
                return output
            for _ in range(most):
                variance = float(output.var())
                if variance == 0 or abs(variance - 1) < tolerance:
                    break
                layer.weight.div_(variance**0.5)
                output = layer.forward(*args)
            found[name] = float(output.var())
            return output

        return hook

    modules = layers_of(model)
    handles = [modules[name].register_forward_hook(scale(name)) for name in names]
    try:
        with eval_mode(model):
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    return found
