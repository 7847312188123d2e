"""Gradual unfreezing as a list of stages: the head alone first, then the network thaws from the top down."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from regraft.core.protocols import Hook, NamedParams, Update, UpdateBuilder, UpdateWrapper
from regraft.core.run import Run
from regraft.core.stage import Recipe, Stage, trainable
from regraft.core.technique import Technique
from regraft.core.values import Clock
from regraft.errors import ConfigError
from regraft.models.layer_scores import layers_of
from regraft.models.parts import Parts, chosen, parts_of


def divided(steps: int, shares: tuple[float, ...]) -> list[int]:
    """The steps of each stage: shares of `steps`, rounded so that they sum to it."""
    total, bounds = sum(shares), [0.0]
    for share in shares:
        bounds.append(bounds[-1] + share)
    marks = [round(steps * bound / total) for bound in bounds]
    return [high - low for low, high in pairwise(marks)]


def thaws(parts: Parts, num_stages: int, groups_per_stage: int | Literal["even"]) -> list[frozenset[str]]:
    """What trains in each stage: the head, then ever more groups below it; a group is a block, or the stem.

    "even" spreads all groups over the stages after the first, so that the last one trains the whole network.
    """
    groups = [*([parts.stem] if parts.stem else []), *parts.blocks]
    later = num_stages - 1
    if groups_per_stage == "even":
        counts = [round(len(groups) * stage / later) for stage in range(1, num_stages)]
    else:
        counts = [groups_per_stage * stage for stage in range(1, num_stages)]
    names = [frozenset(parts.head)]
    for count in counts:
        lower = [name for group in groups[max(0, len(groups) - count) :] for name in group]
        names.append(frozenset((*parts.head, *parts.after, *lower)))
    return names


class _Continued(UpdateWrapper):
    """An update whose schedule sees the clock of the stage that was split, not of the part."""

    def __init__(self, base: Update, before: int, total: int) -> None:
        super().__init__(base)
        self.before, self.total = before, total

    def apply(self, clock: Clock) -> None:
        """Change the parameters at the rate of the whole stage's clock."""
        self.base.apply(Clock(self.before + clock.step, self.total))


@dataclass(frozen=True)
class ContinuedSchedule:
    """Builds an update whose learning-rate schedule runs on from the stage before."""

    base: UpdateBuilder
    before: int  # steps of the stages before this one
    total: int  # of all of them

    def __call__(self, params: NamedParams) -> Update:
        """The update of these parameters."""
        return _Continued(self.base(params), self.before, self.total)


class TellThaw(Hook):
    """Notes which layers a part trains, once, before its first step."""

    def on_start(self, run: Run) -> None:
        """List them, from the input to the head."""
        if run.clock.step:
            return
        found = layers_of(run.stage.model)
        trains = frozenset(trainable(run.stage.model))
        names = [layer.name for layer in found if trains.intersection(layer.parameters)]
        run.note(f"{run.stage.name} trains {len(names)} of {len(found)} layers: {', '.join(names)}")


class StagedThaw(Technique):
    """Splits each stage into several: the head trains first, then the network thaws block by block from the top down.

    Howard and Ruder 2018 (ULMFiT), arXiv:1801.06146, section 3.3 (gradual unfreezing). Each part is a stage with its own
    `trains`; momentum is carried over for the parameters that trained before, those just thawed start with none. Each stage
    has a clock of its own; the learning-rate schedule follows one clock across all of them (`schedule: whole`), or starts
    again with every thaw (`schedule: each`), with its warm-up. What else follows the clock (a ramp of an objective) starts again
    with every thaw.

    Use it when a new head on a pretrained network would send large random gradients down in its first steps. Not when the
    head already starts from a fitted probe and the budget is short: then `Discriminative` alone is as good and simpler.

    Attributes:
        groups_per_stage: how many blocks each further stage thaws (the stem is the last to thaw); "even" spreads all of them,
            so that the last stage trains the whole network.
        shares: share of the stage's steps for the head alone and for each thaw after it; they are divided by their sum.
        schedule: "whole": one learning-rate schedule across all parts; "each": it starts again with every thaw.

    Example:
        ```yaml
        techniques:
          - StagedThaw: {groups_per_stage: 2, shares: [0.2, 0.3, 0.5]}
          - Discriminative: {decay: 0.8}
          - CachePrefix
        ```
    """

    provides: ClassVar[frozenset[str]] = frozenset({"trains"})
    wraps: ClassVar[frozenset[str]] = frozenset({"update", "hooks"})
    splits: ClassVar[bool] = True

    groups_per_stage: int | Literal["even"] = "even"
    shares: tuple[float, ...] = Field(default=(0.2, 0.3, 0.5), min_length=1)
    schedule: Literal["whole", "each"] = "whole"

    @field_validator("groups_per_stage")
    @classmethod
    def _at_least_one(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ConfigError(f'StagedThaw.groups_per_stage: must be "even" or at least 1, got {value}')
        return value

    @field_validator("shares")
    @classmethod
    def _positive(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if min(shares) <= 0:
            raise ConfigError(f"StagedThaw.shares: every share must be above 0, got {min(shares)}")
        return shares

    def apply(self, recipe: Recipe) -> Recipe:
        """Every stage becomes as many stages as there are shares."""
        return replace(recipe, stages=tuple(part for stage in recipe.stages for part in self._split(stage)))

    def _split(self, stage: Stage[Any]) -> list[Stage[Any]]:
        steps = divided(stage.steps, self.shares)
        if min(steps) < 1:
            raise ConfigError(
                f"StagedThaw.shares: stage {stage.name!r} has {stage.steps:,} steps, too few for one step in each of "
                f"{len(steps)} stages; make it longer or use fewer shares"
            )
        sets = thaws(parts_of(stage.model), len(steps), self.groups_per_stage)
        if len(set(sets)) < len(sets):
            raise ConfigError(
                f"StagedThaw.shares: the {type(stage.model).__name__} of stage {stage.name!r} is thawed entirely before the last "
                f"of {len(sets)} stages; use fewer shares or a smaller groups_per_stage"
            )
        parts: list[Stage[Any]] = []
        for index, (count, names) in enumerate(zip(steps, sets, strict=True)):
            what = "head" if index == 0 else f"parts of thaw {index}"
            update: UpdateBuilder = stage.update
            if self.schedule == "whole":
                update = ContinuedSchedule(stage.update, sum(steps[:index]), stage.steps)
            trains = chosen(stage, names, asked_by="StagedThaw", what=what)
            name = f"{stage.name}-head" if index == 0 else f"{stage.name}-thaw{index}"
            hooks = (*stage.hooks, TellThaw())
            parts.append(replace(stage, name=name, steps=count, trains=trains, update=update, hooks=hooks))
        return parts
