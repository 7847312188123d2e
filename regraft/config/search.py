"""The section `search:` of a recipe: which of its fields are searched over, by which method, for how many trials.

search:
  method: {ASHA: {eta: 3}}
  trials: 32
  fidelity: {steps: 0.04}
  space:
    train.optimizer.AdamW.lr: {log: [1.0e-5, 1.0e-2]}
    train.batch_size: {choice: [16, 32, 64]}
    techniques: {choice: [[], [{LoRA: {rank: {log_int: [2, 32]}}}], [NormOnly]]}
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from regraft.config.parse import AnyMethod
from regraft.config.spec import Spec, shown
from regraft.errors import ConfigError, suggest

METRICS = ("score", "loss")


class FidelitySpec(Spec):
    """What is saved on a trial that is not promising, and the least share of it that every trial gets."""

    steps: float | None = Field(default=None, gt=0, lt=1)  # of the steps: a promoted trial goes on from its checkpoint
    data: float | None = Field(default=None, gt=0, lt=1)  # of the training rows, steps in proportion; trained anew

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        if (self.steps is None) == (self.data is None):
            raise ConfigError(
                "fidelity: must have one of steps and data, a share such as 0.1, got "
                f"steps {self.steps} and data {self.data}"
            )
        return self

    @property
    def least(self) -> float:
        """The least share."""
        return self.steps or self.data or 1.0


class SearchSpec(Spec):
    """A search over fields of the recipe it stands in; validation rows alone decide."""

    method: AnyMethod = Field(default="ASHA", validate_default=True)  # pyright: ignore[reportAssignmentType]
    trials: int | None = Field(default=None, ge=1)  # default: as many as the method needs, else 32
    seed: int = 0
    metric: str = "score"  # of the validation rows: score (higher is better), or loss (lower is better)
    fidelity: FidelitySpec | None = None  # for Hyperband and ASHA; default steps: 1/9
    window: int | None = Field(
        default=None, ge=1
    )  # results are told in the order of trials, and trial n knows those up to n - window; ASHA's default: as they arrive
    space: dict[
        str, Any
    ]  # dotted path of a field, as for --set -> {log|uniform|int|log_int: [low, high]} or {choice: [...]}

    @field_validator("metric")
    @classmethod
    def _on_validation_rows(cls, metric: str) -> str:
        if "test" in metric.casefold():
            raise ConfigError(
                f"search.metric: must be score or loss of the validation rows, got {metric!r}; test rows that choose a "
                "recipe no longer say how good it is, so no search looks at them"
            )
        if metric not in METRICS:
            raise ConfigError(
                f"search.metric: must be score or loss of the validation rows, got {shown(metric)}{suggest(metric, METRICS)}"
            )
        return metric

    @field_validator("space")
    @classmethod
    def _not_empty(cls, space: dict[str, Any]) -> dict[str, Any]:
        if not space:
            raise ConfigError(
                "search.space: must name a field to search over, such as train.optimizer.AdamW.lr, got none"
            )
        return space
