"""What of a model may train, by depth: stem, blocks, what follows them, head. Techniques that freeze or scale are built on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from regraft.core.stage import Stage, trainable
from regraft.errors import ConfigError, ModelError
from regraft.models.blocks import layer_groups
from regraft.models.heads import head_name


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Names of a model's parameters by depth; blocks without parameters (activations) are left out."""

    stem: tuple[str, ...]  # what runs before the first block: embeddings, a convolutional stem
    blocks: tuple[tuple[str, ...], ...]  # lowest first
    after: tuple[str, ...]  # what runs between the last block and the head: a final norm, a pooler
    head: tuple[str, ...]

    def top(self, count: int) -> frozenset[str]:
        """Names of the head, what is below it, and the `count` blocks below that; with 0, of the head alone."""
        upper = [name for block in self.blocks[len(self.blocks) - count :] for name in block]
        return frozenset((*self.head, *self.after, *upper) if count else self.head)


def parts_of(model: nn.Module) -> Parts:
    """The parts of a model. Where the module tree shows no head, the last part with parameters is the head.

    Raises:
        ModelError: the model has no parameters.
    """
    stem, *groups, after, head = layer_groups(model)
    blocks = [tuple(group) for group in groups if group]
    if not head and not blocks:
        head, stem = _without_blocks(model, [*stem, *after])
        after = []
    elif not head:
        head, after = (after, []) if after else (list(blocks.pop()), [])
    if not head:
        raise ModelError(f"{type(model).__name__} has no parameters, so there is nothing to train")
    return Parts(stem=tuple(stem), blocks=tuple(blocks), after=tuple(after), head=tuple(head))


def _without_blocks(model: nn.Module, names: list[str]) -> tuple[list[str], list[str]]:
    """Head and rest of a model in which no chain of blocks was found: the head is its last linear layer."""
    head = head_name(model)
    inside = [name for name in names if not head or name.startswith(f"{head}.")]
    return inside, [name for name in names if name not in inside]


def may_train(stage: Stage[nn.Module]) -> frozenset[str]:
    """Names of the stage model's parameters that nobody has frozen: what `trains` names, or what requires gradients."""
    return frozenset(trainable(stage.model)) if stage.trains is None else stage.trains


def chosen(stage: Stage[nn.Module], names: Iterable[str], *, asked_by: str, what: str) -> frozenset[str]:
    """Those of `names` that may train in a stage; parameters that were frozen before stay frozen.

    Raises:
        ConfigError: none of them may; `asked_by` and `what` name the technique and the part in the sentence.
    """
    wanted = frozenset(names)
    kept = wanted & may_train(stage)
    if not kept:
        where = f"the {type(stage.model).__name__} in stage {stage.name!r}"
        if not wanted:
            raise ConfigError(f"{asked_by}: {where} has no {what} to train; choose another technique")
        raise ConfigError(f"{asked_by}: the {what} of {where} are frozen already; let them require gradients")
    return kept
