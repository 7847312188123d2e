"""A model in two at the end of its longest frozen prefix: what to compute once, and what goes on training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from regraft.core.forward import called_on
from regraft.core.stage import trainable
from regraft.core.values import Batch
from regraft.errors import Conflict
from regraft.models.blocks import blocks, layer_groups
from regraft.models.cut import cut
from regraft.models.graft import Graft
from regraft.models.tap import Tap, structure_of, tensors_of
from regraft.models.trace import trace

FEATURES = "features"


class HeadAlone(nn.Module):
    """The head of a graft, under its own name, called on stored features (N, F)."""

    inputs = (FEATURES,)

    def __init__(self, graft: Graft) -> None:
        super().__init__()
        self.head = graft.head

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C)."""
        return self.head(features)


@dataclass(frozen=True, kw_only=True)
class Split:
    """A model in two: the suffix on what the tap gives is the model, and it holds the very parameters that train."""

    model: nn.Module  # what is tapped
    suffix: nn.Module
    tap: Tap
    writes: Mapping[str, str]  # column of the tap -> key the suffix takes it under


def split(model: nn.Module, batch: Batch) -> Split | None:
    """The model cut at the end of its longest frozen prefix (what requires no gradient); None if it has none.

    Args:
        model: with `core.modes.set_trainable` applied.
        batch: some examples to prove the cut on.

    Raises:
        ModelError: no cut fits the model.
        Conflict: a dropout in the frozen prefix is on in training, so what it hands on is never the same.
    """
    if isinstance(model, nn.Sequential):
        return _split_sequential(model)
    if isinstance(model, Graft):
        model = model.unpacked()  # see `cut`
    if isinstance(model, Graft) and not trainable(model.backbone):
        tap = Tap(
            "head", (), tensors_of([model.backbone]), f"{model.reads} {structure_of({'backbone': model.backbone})}"
        )
        return Split(model=model, suffix=HeadAlone(model), tap=tap, writes={tap.column: FEATURES})
    depth = _steady_depth(model, min(frozen_depth(model), len(blocks(model)) - 1), batch)
    parts = cut(model, depth, batch)
    return Split(model=model, suffix=parts.suffix, tap=parts.tap, writes=parts.writes)


def frozen_depth(model: nn.Module) -> int:
    """Number of leading blocks below whose end nothing requires a gradient; 0 where the stem or the first block does."""
    trained = set(trainable(model))
    lowest = next((index for index, names in enumerate(layer_groups(model)) if trained.intersection(names)), 0)
    return min(max(0, lowest - 1), len(blocks(model)))


def _split_sequential(model: nn.Sequential) -> Split | None:
    """Cut after the last layer with parameters before which nothing trains, and nothing acts differently in training."""
    at = 0
    for index, layer in enumerate(model):
        if trainable(layer):
            break
        if any(True for _ in layer.parameters()):
            at = index + 1
        elif any(acts_in_training(part) for part in layer.modules()):
            break
    if at == 0:
        return None
    prefix = model[:at]
    stop = list(model._modules)[at] if at < len(model) else ""
    tap = Tap(stop, (), tensors_of([prefix]), structure_of({"": prefix}))
    return Split(model=model, suffix=model[at:], tap=tap, writes={tap.column: "x"})


def acts_in_training(module: nn.Module) -> bool:
    """Does this layer compute something else in training than in eval mode?"""
    return isinstance(module, _NormBase) or (isinstance(module, _DropoutNd) and module.p > 0)


def _steady_depth(model: nn.Module, depth: int, batch: Batch) -> int:
    """The highest depth up to `depth` below which no dropout or batch norm outside frozen modules is called."""
    frozen = {id(part) for module in model.modules() if _is_frozen(module) for part in module.modules()}
    restless = {name for name, part in model.named_modules() if acts_in_training(part) and id(part) not in frozen}
    record = trace(model, called_on(model, batch))
    first = min((call.start for call in record.calls if call.name in restless), default=None)
    names = [block.name for block in blocks(model)]
    starts = [call.start if (call := record.first(name)) is not None else -1 for name in names]
    while depth > 0 and first is not None and starts[depth] > first:
        depth -= 1
    if depth == 0:
        culprit = next(call.name for call in record.calls if call.start == first)
        raise Conflict(
            f"{culprit} acts differently in training, so what the frozen prefix of the {type(model).__name__} hands "
            "on is never the same; set its p to 0, or train without a store"
        )
    return depth


def _is_frozen(module: nn.Module) -> bool:
    return bool(getattr(module, "frozen", False))
