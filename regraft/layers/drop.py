"""Noise by leaving out: entries, whole features, weights, whole blocks. What is kept is scaled up, so that means stay.

All draw from torch's default generator, which the loop seeds with (seed, stage, step), and are the identity in eval mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regraft.layers.stand_in import own_forward
from regraft.models.trace import tensors_in


def kept(like: Tensor, shape: Sequence[int], rate: float) -> Tensor:
    """A mask of `shape`: 0 with probability `rate`, else 1 / (1 - rate); of the type and device of `like`."""
    return like.new_empty(list(shape)).bernoulli_(1 - rate).div_(1 - rate)


def drop_features(x: Tensor, rate: float) -> Tensor:
    """Maps (N, C, H, W) with whole channels, or tokens (N, L, D) with whole features of an example, set to zero.

    Tompson et al., 2015, arXiv:1411.4280, section 3.2: neighbours tell what a single dropped point was.
    """
    shape = (x.shape[0], x.shape[1], *(1,) * (x.ndim - 2)) if x.ndim > 3 else (x.shape[0], 1, x.shape[-1])
    return x * kept(x, shape, rate)


def drop_path(x: Tensor, output: Tensor, rate: float) -> Tensor:
    """What a residual block hands on where its change of `x` is left out of examples with probability `rate`.

    Huang et al., 2016, arXiv:1603.09382, eq. 2; the change is scaled up where it is kept, instead of down in eval mode.
    """
    return x + (output - x) * kept(x, (x.shape[0], *(1,) * (x.ndim - 1)), rate)


def drop_rates(count: int, rate: float) -> list[float]:
    """Rates of `count` blocks by the linear rule of Huang et al., eq. 4: from rate / count for the lowest to `rate`."""
    return [rate * (depth + 1) / count for depth in range(count)]


def weights_dropped(rate: float, module: nn.Module, x: Tensor) -> Tensor:
    """The output of a linear layer or convolution with entries of its weight set to zero; as ever in eval mode.

    Wan et al., 2013, ICML 28(3), section 3, with one mask for a slice of the batch.
    """
    if not module.training:
        return own_forward(module, x)
    weight = nn.functional.dropout(module.weight, rate)  # type: ignore[arg-type]
    if isinstance(module, nn.Linear):
        return nn.functional.linear(x, weight, module.bias)
    return module._conv_forward(x, weight, module.bias)  # type: ignore[operator]


# ---- hooks on modules that hold nothing but a rate, so that copies and pickles of the module keep them


@dataclass(frozen=True)
class DropInput:
    """A forward pre-hook: dropout of the first input."""

    rate: float

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The inputs."""
        return (nn.functional.dropout(args[0], self.rate, module.training), *args[1:])


@dataclass(frozen=True)
class DropFeatures:
    """A forward hook with keywords: whole features of the first output are dropped."""

    rate: float

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """The output."""
        first = tensors_in(output)[0]
        return output if not module.training or first.ndim < 3 else _with_first(output, drop_features(first, self.rate))


@dataclass(frozen=True)
class DropBlock:
    """A forward hook with keywords: what the block changes is dropped for some examples, where it keeps the shape."""

    rate: float

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """The output."""
        taken, given = tensors_in((args, kwargs))[0], tensors_in(output)[0]
        if not module.training or taken.shape != given.shape:
            return output
        return _with_first(output, drop_path(taken, given, self.rate))


def _with_first(output: Any, tensor: Tensor) -> Any:
    """A block's output, a tensor or a tuple that starts with one, with another first tensor."""
    return tensor if isinstance(output, Tensor) else (tensor, *output[1:])


def shapes_of(model: nn.Module, names: Sequence[str], run: Any) -> dict[str, tuple[torch.Size, torch.Size]]:
    """Shapes of the first tensor that each named module takes and hands on; those are left out that the model does not call.

    Args:
        model: run once, in the mode it is in.
        names: of modules of it.
        run: calls the model on an example.
    """
    found: dict[str, tuple[torch.Size, torch.Size]] = {}

    def look(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            taken, given = tensors_in((args, kwargs)), tensors_in(output)
            if taken and given:
                found.setdefault(name, (taken[0].shape, given[0].shape))

        return hook

    handles = [model.get_submodule(name).register_forward_hook(look(name), with_kwargs=True) for name in names]
    try:
        with torch.no_grad():
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    return found
