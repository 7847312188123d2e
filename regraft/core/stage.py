"""A stage and a recipe: one phase of training, and all of them, as frozen values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar, cast

from torch import nn

from regraft.core.descent import OneUpdate
from regraft.core.modes import set_trainable
from regraft.core.protocols import Hook, Objective, Source, StepBuilder, UpdateBuilder
from regraft.errors import ConfigError, suggest

M = TypeVar("M", bound=nn.Module)
SLOTS = ("model", "trains", "source", "objective", "update", "step", "hooks")  # the order in which techniques fill them


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[M]):
    """One phase of training: what is trained, on what, towards what, how, and for how many steps."""

    name: str
    model: M
    source: Source
    objective: Objective
    update: UpdateBuilder  # builds the update late, from named parameters
    steps: int
    step: StepBuilder = OneUpdate
    hooks: tuple[Hook, ...] = ()
    trains: frozenset[str] | None = None  # names of the model's parameters that train; None: what `requires_grad` says

    def prepare(self) -> None:
        """Freeze what this stage does not train: weights, running statistics and dropout. Called when the stage starts."""
        set_trainable(self.model, self.trains)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that require gradients, of the model and of the objective if it has any, by name."""
        own = {"objective": self.objective} if isinstance(self.objective, nn.Module) else {}
        owners: dict[str, nn.Module] = {"model": self.model, **own}
        return {f"{owner}.{name}": p for owner, module in owners.items() for name, p in trainable(module).items()}


def _nothing() -> dict[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What will be run, as data. `model` is the whole model even while a stage trains a part of it.

    `models` and `sources` are the other named parts of a recipe file, such as a teacher or a target domain.
    """

    model: nn.Module
    stages: tuple[Stage[Any], ...]
    models: Mapping[str, nn.Module] = field(default_factory=_nothing)
    sources: Mapping[str, Source] = field(default_factory=_nothing)

    def find_model(self, reference: str | nn.Module, *, asked_by: str) -> nn.Module:
        """The module itself, or the entry of `models:` with that name.

        Raises:
            ConfigError: no entry has that name.
        """
        return cast(nn.Module, _find(reference, self.models, section="models", asked_by=asked_by))

    def find_source(self, reference: str | Source, *, asked_by: str) -> Source:
        """The source itself, or the entry of `data:` with that name.

        Raises:
            ConfigError: no entry has that name.
        """
        return cast(Source, _find(reference, self.sources, section="data", asked_by=asked_by))


def _find(reference: object, parts: Mapping[str, object], *, section: str, asked_by: str) -> object:
    if not isinstance(reference, str):
        return reference
    if reference not in parts:
        known = suggest(reference, parts) or f"; add it under `{section}:`"
        raise ConfigError(f"{asked_by}: no entry of `{section}:` is called {reference!r}{known}")
    return parts[reference]


def each_stage(recipe: Recipe, edit: Callable[[Stage[Any]], Stage[Any]]) -> Recipe:
    """The recipe with every stage replaced by `edit(stage)`."""
    return replace(recipe, stages=tuple(edit(stage) for stage in recipe.stages))


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Named parameters that require gradients. Techniques ask for these, never for `parameters()`."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
