"""The models of a recipe edited, each of them once: what techniques on the slot `model` are written with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from regraft.core.stage import Recipe, Stage, each_stage
from regraft.errors import ConfigError


def _with_model(stage: Stage[Any], model: nn.Module) -> Stage[Any]:
    return replace(stage, model=model)


def edit_models(
    recipe: Recipe,
    edit: Callable[[nn.Module, Stage[Any]], nn.Module],
    put: Callable[[Stage[Any], nn.Module], Stage[Any]] = _with_model,
) -> Recipe:
    """The recipe with every model that a stage trains replaced by what `edit` makes of it and of the first stage it is in.

    `put` makes a stage of the one before and its new model, where more changes than the model, such as what trains. `edit`
    leaves the model it is given as it is, see `layers.sharing.same_tensors`, and keeps the names of its parameters.
    """
    edited: dict[int, nn.Module] = {}
    for stage in recipe.stages:
        if id(stage.model) not in edited:
            edited[id(stage.model)] = edit(stage.model, stage)
    whole = edited.get(id(recipe.model), recipe.model)
    return replace(each_stage(recipe, lambda stage: put(stage, edited[id(stage.model)])), model=whole)


def refuse_steady(model: nn.Module, *, asked_by: str, what: str) -> None:
    """Raise a ConfigError where `train.steady` has the model train in eval mode, in which `what` is turned off."""
    if any(getattr(module, "steady", False) for module in model.modules()):
        raise ConfigError(
            f"{asked_by}: train.steady trains the weights in eval mode, in which {what} is off; set train.steady: false, or "
            f"drop {asked_by}"
        )
