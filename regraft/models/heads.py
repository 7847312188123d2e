"""The linear layer a model ends in: finding it, replacing it, reading what enters it, and folding a fitted one in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regraft.core.forward import forward
from regraft.core.values import Batch
from regraft.errors import ModelError


def folded(
    weight: Tensor, bias: Tensor, *, mean: Tensor | None = None, deviation: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weight and bias (fp64) for raw features that give the logits `weight` and `bias` give for standardised ones.

    W ((x - mean) / deviation) + b = (W / deviation) x + (b - (W / deviation) mean). The deviation must be the floored one
    the head was fitted with (`floored`): a feature that never varied would explode as soon as the backbone moves.
    """
    weight, bias = weight.double(), bias.double()
    if deviation is not None:
        if not bool((deviation > 0).all()):
            raise ModelError(f"a deviation must be above 0, got {float(deviation.min())}; floor it with heads.floored")
        weight = weight / deviation.double()
    if mean is not None:
        bias = bias - weight @ mean.double()
    return weight, bias


def floored(deviation: Tensor, *, share: float = 0.1) -> Tensor:
    """Deviations (F,), none below `share` of their root mean square (1 where all are zero).

    Not of their median: in a convolutional network most features can be constant on the training rows, and then it is zero.
    """
    typical = float(deviation.square().mean().sqrt())
    return deviation.clamp(min=share * typical if typical > 0 else 1.0)


def standardisation(features: Tensor, *, share: float = 0.1) -> tuple[Tensor, Tensor]:
    """Mean (F,) and floored deviation (F,) of features (N, F), in fp64."""
    deviation, mean = torch.std_mean(features.float(), dim=0, correction=0)
    return mean.double(), floored(deviation.double(), share=share)


def head_name(model: nn.Module) -> str:
    """Name of the last linear layer of a model (a `head` that is one comes first); a ModelError if there is none."""
    if isinstance(getattr(model, "head", None), nn.Linear):
        return "head"
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ModelError(
            f"{type(model).__name__} has no nn.Linear that could be its head; give it one as its last layer"
        )
    return names[-1]


def head_of(model: nn.Module) -> nn.Linear:
    """The linear layer the model ends in."""
    head = model.get_submodule(head_name(model))
    assert isinstance(head, nn.Linear)
    return head


def replace_head(model: nn.Module, num_outputs: int, *, seed: int = 0) -> nn.Module:
    """The model with its last linear layer or 1x1 convolution exchanged, in place, for a fresh one with `num_outputs` outputs."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) or _pointwise(module)]
    if not names or not names[-1]:
        raise ModelError(
            f"{type(model).__name__} has no nn.Linear or 1x1 nn.Conv2d inside that could be its head; "
            "give it one as its last layer"
        )
    old = model.get_submodule(names[-1])
    parent, _, child = names[-1].rpartition(".")
    setattr(model.get_submodule(parent), child, _fresh(old, num_outputs, seed))
    return model


def _pointwise(module: nn.Module) -> bool:
    """Is this a 1x1 convolution over all channels?"""
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1


def _fresh(old: nn.Module, num_outputs: int, seed: int) -> nn.Module:
    """A layer of the kind and place of `old` with weights of deviation 0.02 drawn from `seed` and zero bias."""
    if isinstance(old, nn.Linear):
        new: nn.Linear | nn.Conv2d = nn.Linear(old.in_features, num_outputs)
    else:
        assert isinstance(old, nn.Conv2d)
        new = nn.Conv2d(old.in_channels, num_outputs, 1)
    assert new.bias is not None
    with torch.no_grad():
        new.weight.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(seed))
        new.bias.zero_()
    return new.to(old.weight.device, old.weight.dtype)


def head_input(model: nn.Module, batch: Batch) -> Tensor:
    """What enters the head of a model on a batch, (N, F), with its graph."""
    seen: list[Tensor] = []
    handle = head_of(model).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        forward(model, batch)
    finally:
        handle.remove()
    if not seen:
        raise ModelError(f"the head {head_name(model)} of {type(model).__name__} was not called in its forward pass")
    return seen[-1]
