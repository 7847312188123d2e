"""Extra layers on top of a block: residual two-layer networks, registered as a child of the block, so that no name changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regraft.core.seeding import generator
from regraft.errors import ModelError
from regraft.layers.first_output import with_first_changed
from regraft.layers.sharing import M, same_tensors

CHILD = "extra"  # name under which a block holds them


class Residual(nn.Module):
    """x + up(gelu(down(norm(x)))) for vectors (N, D), tokens (N, L, D) or maps (N, C, H, W); the identity at first.

    Args:
        channels: D or C.
        width: of the layer between.
        maps: take maps, through 1x1 convolutions.
        seeds: decide the initial `down` (He et al., 2015); `up` starts at zero.
    """

    def __init__(self, channels: int, width: int, *, maps: bool = False, seeds: tuple[int, ...] = (0,)) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.norm = nn.GroupNorm(1, channels) if maps else nn.LayerNorm(channels)
            self.down = nn.Conv2d(channels, width, 1) if maps else nn.Linear(channels, width)
            self.up = nn.Conv2d(width, channels, 1) if maps else nn.Linear(width, channels)
        nn.init.kaiming_normal_(self.down.weight, generator=generator(*seeds))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            assert zero is not None
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape as `x`."""
        return x + self.up(F.gelu(self.down(self.norm(x))))


class Extra(nn.Sequential):
    """Residual layers one after another."""


def extended_output(block: nn.Module, args: Any, output: Any) -> Any:
    """What a block hands on, its extra layers applied to the first tensor: a forward hook that holds nothing itself."""
    return with_first_changed(block, output, block.get_submodule(CHILD), asked_by="extra layers")


@dataclass(frozen=True, kw_only=True)
class ExtraLayers:
    """Which block got extra layers, and of which shape: enough to do it again, as plain JSON values."""

    place: str  # name of the block
    channels: int
    maps: bool
    count: int
    width: int

    def to_json(self) -> dict[str, Any]:
        """`{"kind": "extra", "place": ..., "channels": ..., "maps": ..., "count": ..., "width": ...}`."""
        return {"kind": "extra"} | {name: getattr(self, name) for name in self.__dataclass_fields__}

    @staticmethod
    def from_json(description: Mapping[str, Any]) -> ExtraLayers:
        """The inverse of `to_json`."""
        return ExtraLayers(**{name: value for name, value in description.items() if name != "kind"})


def extend(model: M, description: ExtraLayers, *, seed: int = 0) -> M:
    """The model with extra layers: new modules around the same tensors; the state dict only grows, by `<block>.extra.*`.

    The first output is that of the model, bit for bit. `shortened` takes them off again.
    """
    extended = same_tensors(model)
    block = extended.get_submodule(description.place)
    if hasattr(block, CHILD):
        raise ModelError(f"{description.place} holds something called {CHILD!r} already; use Adapter on this model")
    like = next(block.parameters())
    layers = [
        Residual(description.channels, description.width, maps=description.maps, seeds=(seed, position))
        for position in range(description.count)
    ]
    block.add_module(CHILD, Extra(*layers).to(like.device, like.dtype))
    block.register_forward_hook(extended_output)
    return extended


def shortened(model: M) -> M:
    """The model without its extra layers: new modules around the same tensors, with the outputs of the base as it now is."""
    plain = same_tensors(model)
    for module in plain.modules():
        if isinstance(getattr(module, CHILD, None), Extra):
            delattr(module, CHILD)
            for key, hook in list(module._forward_hooks.items()):
                if hook is extended_output:
                    del module._forward_hooks[key]
    return plain


def describe(model: nn.Module) -> ExtraLayers | None:
    """What extra layers a model has; None if it has none."""
    for name, module in model.named_modules():
        if isinstance(module, Extra):
            first = module[0]
            assert isinstance(first, Residual)
            width, channels = first.down.weight.shape[:2]
            maps = isinstance(first.down, nn.Conv2d)
            place = name.rpartition(".")[0]
            return ExtraLayers(place=place, channels=channels, maps=maps, count=len(module), width=width)
    return None


def extra_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the parameters of extra layers."""
    return frozenset(
        f"{name}.{own}"
        for name, module in model.named_modules()
        if isinstance(module, Extra)
        for own, _ in module.named_parameters()
    )
