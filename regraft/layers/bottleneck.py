"""Bottleneck adapters: h + up(relu(down(h))) on what a module hands on, registered as a child of it, so that no name changes.

Houlsby et al. 2019, arXiv:1902.00751, section 2.1 and figure 2. The module is a block, or the last layer of a block's attention
or feed-forward part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regraft.core.modes import eval_mode
from regraft.core.seeding import generator
from regraft.errors import ModelError
from regraft.layers.first_output import with_first_changed
from regraft.layers.sharing import M, same_tensors
from regraft.models.trace import tensors_in

CHILD = "adapter"  # name under which a module holds its adapter


class Bottleneck(nn.Module):
    """x + up(relu(down(x))) for vectors (N, D), tokens (N, L, D) or maps (N, C, H, W); the identity at first.

    Args:
        channels: D or C.
        width: of the bottleneck.
        maps: take maps, through 1x1 convolutions.
        seeds: decide the initial `down` (normal, deviation 0.01, cut at two deviations); `up` starts at zero.
    """

    def __init__(self, channels: int, width: int, *, maps: bool = False, seeds: tuple[int, ...] = (0,)) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.down = nn.Conv2d(channels, width, 1) if maps else nn.Linear(channels, width)
            self.up = nn.Conv2d(width, channels, 1) if maps else nn.Linear(width, channels)
        nn.init.trunc_normal_(self.down.weight, std=0.01, a=-0.02, b=0.02, generator=generator(*seeds))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            assert zero is not None
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape as `x`."""
        return x + self.up(torch.relu(self.down(x)))


def adapt_output(block: nn.Module, args: Any, output: Any) -> Any:
    """What a module hands on, with its adapter applied to the first tensor: a forward hook that holds nothing itself.

    It finds the adapter in the module it is given, so copies and pickles of it use their own.
    """
    return with_first_changed(block, output, block.get_submodule(CHILD), asked_by="adapters")


@dataclass(frozen=True, kw_only=True)
class Bottlenecks:
    """Which modules got adapters: enough to do it again, as plain JSON values."""

    width: int
    places: Mapping[str, tuple[int, bool]]  # module name -> channels, and whether it hands on maps

    def to_json(self) -> dict[str, Any]:
        """`{"kind": "adapter", "width": ..., "places": [[name, channels, maps], ...]}`."""
        return {
            "kind": "adapter",
            "width": self.width,
            "places": [[name, *place] for name, place in self.places.items()],
        }

    @staticmethod
    def from_json(description: Mapping[str, Any]) -> Bottlenecks:
        """The inverse of `to_json`."""
        places = {name: (channels, maps) for name, channels, maps in description["places"]}
        return Bottlenecks(width=description["width"], places=places)


def places_for(model: nn.Module, names: list[str], run: Callable[[nn.Module], object]) -> dict[str, tuple[int, bool]]:
    """Channels of what each named module hands on, and whether it is a map; modules that are not called are left out.

    Args:
        model: run once, in eval mode and without gradients.
        names: of its blocks, or of layers in them.
        run: calls the model on an example.
    """
    found: dict[str, tuple[int, bool]] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            for first in tensors_in(output)[:1]:
                maps = first.ndim == 4
                found[name] = (first.shape[1 if maps else -1], maps)

        return hook

    handles = [model.get_submodule(name).register_forward_hook(look(name)) for name in names]
    try:
        with torch.no_grad(), eval_mode(model):
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    return {name: found[name] for name in names if name in found}


def insert(model: M, description: Bottlenecks, *, seed: int = 0) -> M:
    """The model with adapters: new modules around the same tensors; the state dict only grows, by `<block>.adapter.*`.

    The first output is that of the model, bit for bit.
    """
    adapted = same_tensors(model)
    for position, (name, (channels, maps)) in enumerate(description.places.items()):
        block = adapted.get_submodule(name)
        if hasattr(block, CHILD):
            raise ModelError(f"{name} holds something called {CHILD!r} already; use LoRA on this model")
        like = next(block.parameters())
        adapter = Bottleneck(channels, description.width, maps=maps, seeds=(seed, position))
        block.add_module(CHILD, adapter.to(like.device, like.dtype))
        block.register_forward_hook(adapt_output)
    return adapted


def describe(model: nn.Module) -> Bottlenecks | None:
    """What was put into a model by `insert`, or None."""
    found = {
        name.rpartition(".")[0]: module for name, module in model.named_modules() if isinstance(module, Bottleneck)
    }
    if not found:
        return None
    width, _ = next(iter(found.values())).down.weight.shape[:2]
    places = {name: (int(part.down.weight.shape[1]), isinstance(part.down, nn.Conv2d)) for name, part in found.items()}
    return Bottlenecks(width=int(width), places=places)


def adapter_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the parameters of all bottleneck adapters."""
    return frozenset(
        f"{name}.{own}"
        for name, module in model.named_modules()
        if isinstance(module, Bottleneck)
        for own, _ in module.named_parameters()
    )
