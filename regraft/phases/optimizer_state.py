"""What optimizers keep beside the weights, known before a step is made: the recipe's own, and others to choose from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from regraft.config.spec import Named
from regraft.core import Recipe, Stage
from regraft.optim.optimizers import SGD, Adafactor, AdamW, Optimizer
from regraft.optim.other_optimizers import Lion
from regraft.phases.report.words import size_of

CHOICES: Mapping[str, Optimizer] = {
    "SGD": SGD(),
    "SGD with momentum": SGD(momentum=0.9),
    "Adafactor": Adafactor(),
    "Lion": Lion(),
    "AdamW": AdamW(),
}


def state_sentences(recipe: Recipe, optimizer: Named) -> list[str]:
    """What the optimizer of a compiled recipe will keep, and what others would, a sentence for each amount of trained weights."""
    assert isinstance(optimizer, Optimizer), "the family holds nothing else"
    said: list[str] = []
    seen: set[int] = set()
    for stage in recipe.stages:
        named = trained(stage)
        weights = sum(p.numel() * p.element_size() for p in named.values())
        if weights not in seen:
            seen.add(weights)
            said.append(f"stage {stage.name!r} trains {size_of(weights)} of weights: {_choices(optimizer, named)}")
    return said


def trained(stage: Stage[Any]) -> dict[str, nn.Parameter]:
    """The parameters of a stage's model that will train, without freezing anything yet."""
    chosen = stage.trains
    return {n: p for n, p in stage.model.named_parameters() if (p.requires_grad if chosen is None else n in chosen)}


def _choices(optimizer: Optimizer, named: Mapping[str, nn.Parameter]) -> str:
    own = optimizer.state_bytes(named)
    others = ", ".join(f"{name} {size_of(each.state_bytes(named))}" for name, each in CHOICES.items())
    return f"{type(optimizer).__name__} keeps {size_of(own)} of state beside them and their gradients ({others})"
