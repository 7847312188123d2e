"""The blocks of a network in depth order, found from its module tree: no table of architectures.

A chain is an `nn.ModuleList`, an `nn.Sequential` or a module whose class is called a stage; chains inside chains are opened, so
that a boundary stands after every residual block. The blocks are the class of chain element that holds the most parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

CHAINS = (nn.ModuleList, nn.Sequential)


@dataclass(frozen=True, slots=True)
class Block:
    """One block: its name in `model.named_modules()` and the module."""

    name: str
    module: nn.Module


def is_chain(module: nn.Module) -> bool:
    """Do the children of this module run one after another?"""
    return isinstance(module, CHAINS) or type(module).__name__.endswith("Stage")


def blocks(model: nn.Module) -> list[Block]:
    """The blocks of a model in depth order; empty where the module tree has no chain of them.

    A model that is itself an `nn.Sequential` has all its elements as blocks, nested Sequentials opened.
    """
    if isinstance(model, nn.Sequential):
        return list(_elements(model, ""))
    families: dict[type[nn.Module], list[Block]] = {}
    for block in _chained(model, ""):
        families.setdefault(type(block.module), []).append(block)
    if not families:
        return []
    return max(families.values(), key=lambda family: sum(_size(block.module) for block in family))


def layer_groups(model: nn.Module) -> list[list[str]]:
    """Parameter names by depth: stem, block 1, ..., block K, what follows the blocks, head. Every name is in one group.

    What runs before the blocks is the stem, wherever it is registered: relative position tables are, too. A downsampling layer
    of a stage belongs to the block it feeds, or else to the block it follows. The last linear layer of a model that is not a
    bare backbone is the head; a group may be empty.
    """
    found = blocks(model)
    head = _head_name(model, found)
    groups: list[list[str]] = [[] for _ in range(len(found) + 3)]
    for name, _ in model.named_parameters():
        groups[_depth_of(name, model, found, head)].append(name)
    return groups


def depth_of(name: str, model: nn.Module) -> int:
    """Index of the group of `layer_groups` that a parameter or module belongs to: 0 for what runs before the blocks."""
    found = blocks(model)
    return _depth_of(name, model, found, _head_name(model, found))


def stem_and_block_modules(model: nn.Module, depth: int) -> list[str]:
    """Names of the modules that run before block `depth` (0-based), outermost first: all of the stem and the blocks below it."""
    found = blocks(model)
    head = _head_name(model, found)
    names: list[str] = []
    for name, module in model.named_modules():
        if not name or isinstance(module, nn.ModuleList) or any(_inside(name, kept) for kept in names):
            continue
        if any(_inside(block.name, name) and block.name != name for block in found):
            continue  # holds blocks: its parts are looked at one by one
        if _depth_of(name, model, found, head) <= depth:
            names.append(name)
    return names


def _depth_of(name: str, model: nn.Module, found: list[Block], head: str | None) -> int:
    """Index of the group of `layer_groups` a parameter or module belongs to."""
    if head is not None and _inside(name, head):
        return len(found) + 2
    for index, block in enumerate(found):
        if _inside(name, block.name):
            return index + 1
    return _between(name, model, found)


def _between(name: str, model: nn.Module, found: list[Block]) -> int:
    """Group of something that is in no block: by its own stage first, then by the order of registration."""
    order = {other: position for position, (other, _) in enumerate(model.named_modules())}
    owner = name if name in order else name.rpartition(".")[0]
    parent = _stage_of(owner, model)
    here = [i for i, block in enumerate(found) if parent is not None and _inside(block.name, parent)]
    if here:
        after = [i for i in here if order[found[i].name] > order[owner]]
        return (min(after) if after else max(here)) + 1
    if not found or order[owner] < order[found[0].name] or _beside_embedding(owner, model):
        return 0
    return len(found) + 1


def _stage_of(name: str, model: nn.Module) -> str | None:
    """Name of the innermost stage that holds `name`."""
    while name:
        name = name.rpartition(".")[0]
        if name and type(model.get_submodule(name)).__name__.endswith("Stage"):
            return name
    return None


def _beside_embedding(name: str, model: nn.Module) -> bool:
    """Is this an embedding table, or does it stand beside one in the encoder, as relative positions do?"""
    if isinstance(model.get_submodule(name), nn.Embedding):
        return True
    parent = name.rpartition(".")[0]
    return any(isinstance(child, nn.Embedding) for child in model.get_submodule(parent).children())


def _head_name(model: nn.Module, found: list[Block]) -> str | None:
    """Name of the head: a child called head, classifier, score or fc, or the last linear layer of a plain network."""
    inner = [
        name for name, _ in model.named_modules() if name.rpartition(".")[2] in {"head", "classifier", "score", "fc"}
    ]
    outside = [name for name in inner if not any(_inside(name, block.name) for block in found)]
    return outside[0] if outside else None


def _inside(name: str, ancestor: str) -> bool:
    """Is `name` the module `ancestor` or a part of it?"""
    return name == ancestor or name.startswith(f"{ancestor}.")


def _size(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def _chained(module: nn.Module, name: str) -> Iterator[Block]:
    """Elements of the outermost chains of a module, in the order of registration."""
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        yield from _elements(child, path) if is_chain(child) else _chained(child, path)


def _elements(chain: nn.Module, name: str) -> Iterator[Block]:
    """Elements of a chain; chains among them are opened."""
    for child_name, child in chain.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if is_chain(child):
            yield from _elements(child, path)
        elif isinstance(chain, CHAINS):
            yield Block(path, child)
