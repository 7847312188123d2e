"""What the parameters of a network are for: attention, feed-forward, normalisation, biases, embeddings.

Nothing is read off the names of modules. Attention is what mixes tokens: what a part of a block returns for one token depends
on another token, which one backward pass through a small example shows. Feed-forward is what else of a block has matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from regraft.core.modes import eval_mode
from regraft.core.seeding import generator
from regraft.models.blocks import blocks
from regraft.models.parts import parts_of
from regraft.models.trace import holds, tensors_in

Kind = Literal["attention", "ffn", "norm", "bias", "embeddings"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def is_norm(module: nn.Module) -> bool:
    """Is this a normalisation layer: one of torch's, or a class with "Norm" in its name whose parameters are all vectors?"""
    own = list(module.parameters(recurse=False))
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)):
        return bool(own)
    vectors = all(parameter.ndim == 1 for parameter in own)
    return "Norm" in type(module).__name__ and bool(own) and vectors and not any(module.children())


def norm_layers(model: nn.Module) -> dict[str, list[str]]:
    """Name of each normalisation layer -> names of its gains and shifts, in the order of registration."""
    return {
        name: [f"{name}.{own}" if name else own for own, _ in module.named_parameters(recurse=False)]
        for name, module in model.named_modules()
        if is_norm(module)
    }


def norm_parameters(model: nn.Module) -> Iterator[str]:
    """Names of the gains and shifts of all normalisation layers."""
    for names in norm_layers(model).values():
        yield from names


def bias_parameters(model: nn.Module) -> Iterator[str]:
    """Names of all vectors that are added: parameters called `bias`, or `in_proj_bias` and the like."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and name.rpartition(".")[2].endswith("bias"):
            yield name


def embedding_parameters(model: nn.Module) -> Iterator[str]:
    """Names of what turns inputs into what the first block takes, without its normalisation layers.

    Tables of tokens and positions, the projection of patches, class tokens; of a convolutional network its stem.
    """
    norms = set(norm_parameters(model))
    yield from (name for name in parts_of(model).stem if name not in norms)


@dataclass(frozen=True, kw_only=True)
class BlockKinds:
    """Names of the parameters of all blocks by what they are for; normalisation layers are in neither."""

    attention: frozenset[str]
    ffn: frozenset[str]


def block_kinds(model: nn.Module, run: Callable[[nn.Module], object]) -> BlockKinds:
    """What of a model's blocks is attention and what is feed-forward; both empty where nothing mixes tokens.

    Args:
        model: called once in eval mode; its own parameters are left without gradients.
        run: calls the model on an example of at least two tokens.
    """
    found = [block.name for block in blocks(model)]
    mixing = _mixing(model, found, run)
    norms = set(norm_parameters(model))
    attention: set[str] = set()
    ffn: set[str] = set()
    for name in found:
        block = model.get_submodule(name)
        parts = _attention_parts(block, name, mixing)
        owners = {f"{name}.{part}" if part else name for part, m in block.named_modules() if _has_matrix(m)}
        for parameter, _ in block.named_parameters(prefix=name):
            if parameter in norms:
                continue
            if any(holds(part, parameter) for part in parts):
                attention.add(parameter)
            elif parts and parameter.rpartition(".")[0] in owners:
                ffn.add(parameter)
    return BlockKinds(attention=frozenset(attention), ffn=frozenset(ffn))


def _has_matrix(module: nn.Module) -> bool:
    """Has the module itself, without its parts, a parameter of two dimensions or more?"""
    return any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))


def _attention_parts(block: nn.Module, name: str, mixing: set[str]) -> list[str]:
    """Names of the outermost parts of a block that mix tokens; a wrapper around the whole block is opened."""
    parts = list(_outermost(block, name, mixing))
    if len(parts) == 1:
        inner = block.get_submodule(parts[0][len(name) + 1 :])
        all_of_it = sum(p.numel() for p in block.parameters() if p.ndim > 1)
        if sum(p.numel() for p in inner.parameters() if p.ndim > 1) == all_of_it:
            return _attention_parts(inner, parts[0], mixing) or parts
    return parts


def _outermost(module: nn.Module, name: str, mixing: set[str]) -> Iterator[str]:
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if path in mixing:
            yield path
        else:
            yield from _outermost(child, path, mixing)


# ---- who mixes tokens


def _mixing(model: nn.Module, found: list[str], run: Callable[[nn.Module], object]) -> set[str]:
    """Names of the modules inside the blocks whose output at a token depends on what they take at another."""
    mixing: set[str] = set()

    def look(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if isinstance(module, nn.MultiheadAttention) or _depends(args, kwargs, output):
            mixing.add(name)

    handles = []
    for name in found:
        block = model.get_submodule(name)
        handles.append(block.register_forward_pre_hook(_begin, with_kwargs=True))
        for part, module in block.named_modules(prefix=name):
            if part != name:
                handles.append(module.register_forward_hook(partial(look, part), with_kwargs=True))
    try:
        with torch.enable_grad(), eval_mode(model):
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    return mixing


def _tokens(args: Any, kwargs: Any) -> Tensor | None:
    """The first tensor (N, L, D) of numbers, L > 1, among the arguments."""
    given = tensors_in(args) + tensors_in(kwargs)
    return next((t for t in given if t.ndim == 3 and t.is_floating_point() and t.shape[1] > 1), None)


def _begin(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
    """What a block takes starts a graph of its own, whatever is frozen below it."""
    tokens = _tokens(args, kwargs)
    if tokens is None:
        return None
    leaf = tokens.detach().requires_grad_()
    return (
        tuple(leaf if value is tokens else value for value in args),
        {name: leaf if value is tokens else value for name, value in kwargs.items()},
    )


def _depends(args: Any, kwargs: Any, output: Any) -> bool:
    """Has what comes out for the other tokens a gradient with respect to the first token?"""
    tokens, given = _tokens(args, kwargs), tensors_in(output)
    if tokens is None or not given or given[0].ndim != 3 or given[0].shape[:2] != tokens.shape[:2]:
        return False
    if not (tokens.requires_grad and given[0].requires_grad):
        return False
    others = given[0][:, 1:]
    weights = torch.randn(others.shape, generator=generator(0)).to(
        others
    )  # a plain sum of a norm's outputs is constant
    (gradient,) = torch.autograd.grad((others * weights).sum(), tokens, retain_graph=True, allow_unused=True)
    return gradient is not None and bool(gradient[:, 0].abs().sum() > 0)
