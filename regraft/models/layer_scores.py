"""A number for each layer that says whether it should be tuned: Fisher information, relative gradient, or how far it has turned.

The first two are measured before training, on examples; the angle between weights before and after needs a finished run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regraft.core import Clock, Stage, trainable
from regraft.core.modes import eval_mode
from regraft.core.values import size
from regraft.models.blocks import blocks, depth_of, layer_groups
from regraft.models.fisher import first_examples, mean_fisher

By = Literal["block", "module"]


@dataclass(frozen=True, slots=True)
class Layer:
    """Some parameters of a model that are judged together. `depth` is 0 for what runs before the blocks."""

    name: str
    depth: int
    parameters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """What a layer is worth by some metric; None where it has no value, as the angle of weights that were zero."""

    layer: Layer
    count: int  # parameters in it
    value: float | None


def layers_of(model: nn.Module, *, by: By = "block") -> list[Layer]:
    """The layers of a model in depth order: stem, blocks, what follows them and the head, or every module with parameters."""
    if by == "block":
        names = ["stem", *(block.name for block in blocks(model)), "after the blocks", "head"]
        found = zip(names, layer_groups(model), strict=True)
        return [Layer(name, depth, tuple(group)) for depth, (name, group) in enumerate(found) if group]
    owners: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        owners.setdefault(name.rpartition(".")[0], []).append(name)
    made = [Layer(owner or "(loose)", depth_of(group[0], model), tuple(group)) for owner, group in owners.items()]
    return sorted(made, key=lambda layer: layer.depth)  # stable: modules of a block stay in the order of registration


def fisher_scores(stage: Stage[Any], layers: Iterable[Layer], *, samples: int) -> list[Score]:
    """Mean diagonal Fisher information a parameter, on the first examples of the stage.

    ValizadehAslani and Liang 2024, arXiv:2403.20284, choose LayerNorms so.
    """
    information = mean_fisher(stage, frozenset(trainable(stage.model)), samples=samples)
    scores: list[Score] = []
    for layer in layers:
        known = [information[name].double() for name in layer.parameters if name in information]
        count = sum(value.numel() for value in known)
        scores.append(Score(layer, count, float(sum(v.sum() for v in known)) / count if count else None))
    return scores


def gradient_scores(stage: Stage[Any], layers: Iterable[Layer], *, samples: int) -> list[Score]:
    """Norm of a layer's gradient over the norm of its weights, on the first examples of the stage.

    The relative gradient norm of Lee et al. 2023 (surgical fine-tuning), arXiv:2210.11466, section 5.
    """
    named = trainable(stage.model)
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    seen = 0
    with eval_mode(stage.model):
        for batch in first_examples(stage, samples):
            loss = stage.objective(stage.model, batch, Clock(0, stage.steps)).value * size(batch)
            found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
            for name, gradient in zip(named, found, strict=True):
                total[name] += gradient
            seen += size(batch)
    scores: list[Score] = []
    for layer in layers:
        names = [name for name in layer.parameters if name in named]
        steep = _norm([total[name] for name in names]) / max(seen, 1)
        long = _norm([named[name].detach() for name in names])
        count = sum(named[name].numel() for name in names)
        scores.append(Score(layer, count, steep / long if long else None))
    return scores


def angle_scores(before: Mapping[str, Tensor], after: Mapping[str, Tensor], layers: Iterable[Layer]) -> list[Score]:
    """The fine-tuned angle in degrees: between a layer's weights before and after training, as one vector each.

    Ye et al. 2023, arXiv:2312.15681, section 4. 0 for a layer that has not moved; None where its weights were all zero, or not
    there before.
    """
    scores: list[Score] = []
    for layer in layers:
        pairs = [(before[name], after[name]) for name in layer.parameters if name in before and name in after]
        turned: float | None = None
        if pairs and all(torch.equal(old, new) for old, new in pairs):
            turned = 0.0
        elif pairs:
            turned = _angle(
                *(torch.cat([t.detach().double().flatten() for t in each]) for each in zip(*pairs, strict=True))
            )
        scores.append(Score(layer, sum(old.numel() for old, _ in pairs), turned))
    return scores


def _angle(one: Tensor, other: Tensor) -> float | None:
    """Degrees between two vectors, exact for small angles too (Kahan: 2 atan2(|u - v|, |u + v|) of unit vectors)."""
    lengths = float(one.norm()), float(other.norm())
    if 0.0 in lengths:
        return None
    u, v = one / lengths[0], other / lengths[1]
    return math.degrees(2 * math.atan2(float((u - v).norm()), float((u + v).norm())))


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def best(scores: Iterable[Score], count: int) -> list[Score]:
    """The `count` layers with the highest scores, highest first; of equal ones the first in the network."""
    known = [score for score in scores if score.value is not None]
    return sorted(known, key=lambda score: -(score.value or 0.0))[:count]
