"""Where in a network something small is put: which blocks, and which of their layers end attention and feed-forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from regraft.core.modes import eval_mode
from regraft.errors import ConfigError
from regraft.models.anatomy import block_kinds
from regraft.models.blocks import Block, blocks
from regraft.models.parts import parts_of

Position = Annotated[int, Field(ge=1)]
Placement = (
    Literal["all"] | Position | tuple[Position, ...]
)  # every block, so many of the top ones, or those of these numbers


def placed(model: nn.Module, placement: Placement, *, asked_by: str) -> list[Block]:
    """The blocks a placement means, lowest first; only blocks with parameters count, and the head is none.

    Args:
        model: whose blocks.
        placement: "all"; a number for so many of the top blocks; or numbers of blocks, 1 for the lowest.
        asked_by: name of the technique, for the error.

    Raises:
        ConfigError: there are not so many blocks.
    """
    head = {name.rpartition(".")[0] for name in parts_of(model).head}
    found = [b for b in blocks(model) if any(True for _ in b.module.parameters()) and b.name not in head]
    if placement == "all":
        return found
    highest = placement if isinstance(placement, int) else max(placement, default=0)
    if not 1 <= highest <= len(found):
        got = placement if isinstance(placement, int) else list(placement)
        raise ConfigError(
            f"{asked_by}.blocks: the {type(model).__name__} has {len(found)} blocks, got {got}; give `all`, how many of the "
            "top ones, or a list of numbers, 1 for the lowest"
        )
    if isinstance(placement, int):
        return found[-placement:]
    return [found[at - 1] for at in sorted(set(placement))]


def is_linear(module: nn.Module) -> bool:
    """Is this a linear layer: torch's, or GPT-2's, whose weight is (in, out)?"""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def sublayer_ends(model: nn.Module, chosen: Iterable[Block], run: Callable[[nn.Module], object]) -> list[str]:
    """Names of the layers that end the attention and the feed-forward part of each block, two a block, in that order.

    What they give is what the residual is added to. The end of a part is the linear layer of it that is called last; torch's own
    attention, which calls none, is its end itself. A block in which only one of the parts is found is left out.

    Args:
        model: run twice.
        chosen: its blocks to look into.
        run: calls the model on an example of at least two tokens.
    """
    kinds = block_kinds(model, run)
    names = {module: name for name, module in model.named_modules()}
    called: list[str] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        called.append(names[module])

    parts = [module for module in names if is_linear(module) or isinstance(module, nn.MultiheadAttention)]
    handles = [module.register_forward_hook(note) for module in parts]
    try:
        with torch.no_grad(), eval_mode(model):
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    ends: list[str] = []
    for block in chosen:
        inside = [name for name in called if name.startswith(f"{block.name}.")]
        attention = [n for n in inside if {f"{n}.weight", f"{n}.in_proj_weight"} & kinds.attention]
        feed_forward = [n for n in inside if f"{n}.weight" in kinds.ffn]
        if attention and feed_forward:
            ends += [attention[-1], feed_forward[-1]]
    return ends
