"""What a network does on one example, module by module: which calls, in which order, with which tensors. No source is read.

The main chain of a network is found by identity: the tensor one module returns is the very tensor the next one takes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regraft.core.modes import eval_mode


@dataclass(slots=True)
class Call:
    """One call of a submodule. `start` and `end` count events of the run; tensors are kept, so identity can be compared."""

    name: str
    start: int
    taken: tuple[Tensor, ...]
    end: int = -1
    output: Any = None
    given: tuple[Tensor, ...] = ()


@dataclass(slots=True)
class Trace:
    """The calls of one run in the order in which they began, and what the model returned."""

    calls: list[Call] = field(default_factory=list)
    output: Any = None

    def first(self, name: str) -> Call | None:
        """The first call of a module, or None if it was not called."""
        return next((call for call in self.calls if call.name == name), None)


def tensors_in(value: Any) -> tuple[Tensor, ...]:
    """The tensors of a value in order: of a tensor, a list, a tuple or a mapping, nested."""
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, Mapping):
        return tuple(tensor for item in value.values() for tensor in tensors_in(item))
    if isinstance(value, (list, tuple)):
        return tuple(tensor for item in value for tensor in tensors_in(item))
    return ()


def call(module: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """The output of a module: by keyword if it is a transformers model or declares `inputs`, else in order."""
    by_name = hasattr(module, "inputs") or hasattr(module, "main_input_name")
    return module(**inputs) if by_name else module(*inputs.values())


@torch.no_grad()
def trace(model: nn.Module, inputs: Mapping[str, Any]) -> Trace:
    """Run the model in eval mode without gradients and write down every call of a submodule; modes are put back."""
    record, clock, open_calls = Trace(), [0], dict[str, list[Call]]()

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entry = Call(name, clock[0], tensors_in(args) + tensors_in(kwargs))
            clock[0] += 1
            record.calls.append(entry)
            open_calls.setdefault(name, []).append(entry)

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            entry = open_calls[name].pop()
            entry.end, entry.output, entry.given = clock[0], output, tensors_in(output)
            clock[0] += 1

        return hook

    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
            handles.append(module.register_forward_hook(after(name), with_kwargs=True))
    try:
        with eval_mode(model):
            record.output = call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return record


def produced_by(record: Trace, tensor: Tensor, *, outside: str, before: int) -> Call | None:
    """The outermost call that gave `tensor` as its first output before event `before` and does not hold module `outside`."""
    found = [
        entry
        for entry in record.calls
        if 0 <= entry.end < before and entry.given and entry.given[0] is tensor and not holds(entry.name, outside)
    ]
    return max(found, key=lambda entry: entry.end, default=None)


def holds(name: str, part: str) -> bool:
    """Is module `part` module `name` or inside it?"""
    return part == name or part.startswith(f"{name}.")


def restructured(model: nn.Module, edits: Mapping[str, nn.Module | None]) -> nn.Module:
    """The model with some submodules exchanged, or dropped where the edit is None; the original is left as it was.

    Only the ancestors of what changes are copied; parameters, buffers and all other modules are shared, under the same names.
    """
    copies: dict[str, nn.Module] = {}

    def copied(name: str) -> nn.Module:
        if name not in copies:
            original = model.get_submodule(name)
            twin = copy.copy(original)
            twin._modules = dict(original._modules)
            copies[name] = twin
            if name:
                parent, _, child = name.rpartition(".")
                copied(parent)._modules[child] = twin
        return copies[name]

    copied("")
    for name, module in edits.items():
        parent, _, child = name.rpartition(".")
        if module is None:
            del copied(parent)._modules[child]
        else:
            copied(parent)._modules[child] = module
    return copies[""]
