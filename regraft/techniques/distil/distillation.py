"""Distillation: a student learns a teacher's soft predictions beside the labels."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from regraft.core import Batch, Clock, Loss, Objective, Recipe, Stage, Technique, each_stage, forward
from regraft.core.forward import inputs_of, shared_forward
from regraft.data.precompute import Precompute
from regraft.data.store import Keeping
from regraft.errors import Conflict
from regraft.losses.distillation import distillation_loss
from regraft.models.frozen import Frozen
from regraft.models.tap import OUTPUT, whole

COLUMN = "teacher_logits"
MOST_BYTES = 2 << 30  # of kept logits; what does not fit is computed again each time


class Distilled(nn.Module):
    """(1 - weight) base + weight T^2 KL(teacher || student), from one forward pass of the student."""

    def __init__(self, base: Objective, temperature: float, weight: float) -> None:
        super().__init__()
        self.base, self.temperature, self.weight = base, temperature, weight

    def forward(self, model: nn.Module, batch: Batch, clock: Clock) -> Loss:
        """The mixed loss; `distillation` in the log is the teacher's term in nats."""
        with shared_forward():  # the base objective has asked for the same output
            hard = self.base(model, batch, clock)
            student = forward(model, batch).float()
        soft = distillation_loss(student, _matching(batch[COLUMN], student), self.temperature)
        value = (1 - self.weight) * hard.value + self.weight * soft
        return Loss(value, hard.weight, {**hard.terms, "distillation": soft.detach()})


def _matching(teacher: Tensor, student: Tensor) -> Tensor:
    """The teacher's logits, once their shape is found to be the student's."""
    if teacher.shape != student.shape or student.ndim != 2 or student.shape[1] < 2:
        raise Conflict(
            "Distillation: teacher and student must both give logits (N, C) for the same two or more classes, got "
            f"{tuple(teacher.shape)} from the teacher and {tuple(student.shape)} from the student"
        )
    return teacher.float()


class Distillation(Technique):
    """Trains the model towards a teacher's softened class probabilities, mixed with the stage's own objective.

    Hinton et al., 2015, arXiv:1503.02531, section 2. The teacher is a frozen function of the example: it runs once per
    example where the data is repeatable, and its logits are looked up after that. Accumulation is exact where all rows are
    labelled.

    Use it when a larger or better model exists and the one in service must be small, or when much of the data is unlabelled.
    Not when the teacher is no better than the student, for regression, or when teacher and student tokenise differently.

    Attributes:
        teacher: entry of `models:`, or in Python a module.
        temperature: divides both models' logits; higher shows more of what the teacher finds similar.
        weight: share of the teacher's term; 0 is the stage's objective alone.

    Example:
        ```yaml
        models:
          main: {name: minilm}
          teacher: {name: ./runs/large/model}
        techniques:
          - Distillation: {teacher: teacher, temperature: 2, weight: 0.5}
        ```
    """

    teacher: str | nn.Module
    temperature: float = Field(default=2.0, gt=0)
    weight: float = Field(default=0.5, ge=0, le=1)

    wraps: ClassVar[frozenset[str]] = frozenset({"source", "objective"})
    reads: ClassVar[frozenset[str]] = frozenset({""})
    place: ClassVar[Literal["inner", "middle", "outer"]] = (
        "inner"  # it shares out the base loss; penalties go around both
    )

    def apply(self, recipe: Recipe) -> Recipe:
        """Add the teacher's logits to every stage's batches, and its term to every stage's objective."""
        teacher = recipe.find_model(self.teacher, asked_by="Distillation.teacher")
        if self.weight == 0:
            return recipe
        trained = set(recipe.model.parameters())
        if any(parameter in trained for parameter in teacher.parameters()):
            teacher = copy.deepcopy(teacher)  # the model as it is now teaches what it becomes
        return each_stage(recipe, lambda stage: self._taught(stage, teacher))

    def _taught(self, stage: Stage[Any], teacher: nn.Module) -> Stage[Any]:
        key = inputs_of(teacher)[0]
        if key not in stage.source.inputs:
            raise Conflict(
                f"Distillation: the teacher reads {key!r}, but the source of stage {stage.name!r} yields "
                f"{sorted(stage.source.inputs)}"
            )
        frozen = Frozen(teacher, [whole(teacher)], keeping=Keeping(max_bytes=MOST_BYTES))
        source = Precompute(stage.source, frozen, reads=key, writes={OUTPUT: COLUMN})
        return replace(stage, source=source, objective=Distilled(stage.objective, self.temperature, self.weight))
