"""Where a frozen part of a model is tapped: what enters one of its modules, and what a head reads below it.

One run of the model, stopped at the last tap, serves any number of taps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regraft.models.graft import Graft, captured
from regraft.models.pooling import pooled
from regraft.models.trace import call, tensors_in

Read = tuple[int, str]
OUTPUT = "output"  # the column of a tap at the end of a model


class _Reached(Exception):
    """Raised at the last tap: everything it asks for is known."""


@dataclass(frozen=True)
class Tap:
    """The tensor that enters a module of a model, and pooled outputs of blocks below it."""

    stop: str  # name of the module; "" for the model's output
    reads: tuple[Read, ...] = ()
    tensors: tuple[Tensor, ...] = field(default=(), compare=False)  # parameters and buffers that decide all of them
    structure: str = field(default="", compare=False)  # what they are the parameters of, in words

    @property
    def column(self) -> str:
        """Name under which the tensor is stored."""
        return f"into {self.stop}" if self.stop else OUTPUT


def tapped(model: nn.Module, taps: Sequence[Tap], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The columns of all taps, (N, ...) each, from one run of the model in the mode it is in."""
    found: dict[str, Tensor] = {}
    waiting = {tap.stop for tap in taps}

    def note(stop: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[f"into {stop}"] = tensors_in((args, kwargs))[0]
            waiting.discard(stop)
            if not waiting:
                raise _Reached

        return hook

    reads = sorted({read for tap in taps for read in tap.reads})
    network = model.backbone if isinstance(model, Graft) else model
    places = (
        [model.boundary(depth) for depth in sorted({depth for depth, _ in reads})] if isinstance(model, Graft) else []
    )
    handles = [
        model.get_submodule(stop).register_forward_pre_hook(note(stop), with_kwargs=True) for stop in waiting if stop
    ]
    try:
        with captured(network, places) as seen:
            found[OUTPUT] = tensors_in(call(model, inputs))[0]
    except _Reached:
        pass  # as meant: the rest of the model is not run
    finally:
        for handle in handles:
            handle.remove()
    mask = inputs.get("attention_mask")
    found |= {stored_key(read): pooled(seen[read[0]], read[1], mask) for read in reads}
    return {name: value for name, value in found.items() if name != OUTPUT or OUTPUT in {tap.column for tap in taps}}


def whole(model: nn.Module) -> Tap:
    """The tap at the end of a model: its output, which all of its tensors decide."""
    return Tap("", (), tensors_of([model]), structure_of({"": model}))


def stored_key(read: Read) -> str:
    """Batch key and column under which a pooled output is stored."""
    return f"pooled_{read[0]}_{read[1]}"


def fingerprint(tensors: Sequence[Tensor]) -> str:
    """Hex digest of tensors, their shapes and types."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def tensors_of(modules: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """Parameters and buffers of modules, shared ones once."""
    found = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
    return tuple(found.values())


def structure_of(named: Mapping[str, nn.Module]) -> str:
    """Modules in words: what they are made of, and the settings of a transformers model."""
    lines = [f"{name}: {module!r}" for name, module in named.items()]
    for module in named.values():
        for part in module.modules():
            config = getattr(part, "config", None)
            if hasattr(config, "to_json_string"):
                lines += [config.to_json_string(), str(getattr(config, "_attn_implementation", ""))]  # pyright: ignore
                break
    return "\n".join(dict.fromkeys(lines))
