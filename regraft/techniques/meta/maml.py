"""MAML: train so that a few gradient steps on a new task's examples are enough."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from regraft.core import Batch, Clock, Loss, Objective, Recipe, Source, Stage, Technique, each_stage, trainable
from regraft.core.values import mean, size
from regraft.data.episodes import Episodes
from regraft.data.sources import Examples
from regraft.errors import Conflict
from regraft.layers.bound import Bound
from regraft.losses.supervised import cross_entropy

Weights = Mapping[str, Tensor]


def descended(
    bound: Bound, batch: Batch, clock: Clock, *, rate: float, steps: int, first_order: bool
) -> dict[str, Tensor]:
    """The model's trainable weights after `steps` gradient steps on `batch`, by name, as a function of the weights now.

    Finn et al., 2017, arXiv:1703.03400, eq. 1. With `first_order` the inner gradients count as constants.
    """
    fast: dict[str, Tensor] = {f"model.{name}": p for name, p in trainable(bound.model).items()}
    for _ in range(steps):
        loss = functional_call(bound, fast, (batch, clock)).value
        grads = torch.autograd.grad(
            loss, list(fast.values()), create_graph=not first_order, allow_unused=True, materialize_grads=True
        )
        fast = {name: w - rate * g for (name, w), g in zip(fast.items(), grads, strict=True)}
    return fast


class QueryLoss(nn.Module):
    """The base objective on each task's query set, with weights adapted to its support set; mean over the tasks."""

    def __init__(self, base: Objective, spec: MAML) -> None:
        super().__init__()
        self.base, self.spec = base, spec

    def forward(self, model: nn.Module, batch: Batch, clock: Clock) -> Loss:
        """The mean of the tasks' query losses; it weighs as many as there are tasks."""
        bound, spec = Bound(self.base, model), self.spec
        losses: list[Loss] = []
        # flash and memory-efficient attention have no second derivative
        with nullcontext() if spec.first_order else sdpa_kernel(SDPBackend.MATH):
            for support, query in zip(tasks(batch, "support"), tasks(batch, "query"), strict=True):
                fast = descended(
                    bound, support, clock, rate=spec.inner_lr, steps=spec.inner_steps, first_order=spec.first_order
                )
                losses.append(replace(functional_call(bound, fast, (query, clock)), weight=1.0))
        loss = mean(losses)
        return replace(loss, weight=float(len(losses)))


def tasks(batch: Batch, role: str) -> list[Batch]:
    """One batch for each task from columns (T, M, ...): those of the role, without its prefix."""
    columns = {key.removeprefix(f"{role}_"): value for key, value in batch.items() if key.startswith(f"{role}_")}
    return [{key: column[i] for key, column in columns.items()} for i in range(size(columns))]


class MAML(Technique):
    """Trains weights from which a few gradient steps on a task's support examples do best on its query examples.

    Finn et al., 2017, arXiv:1703.03400, algorithm 2; `first_order` drops the second derivatives (section 5.2). Labelled
    examples become tasks of `ways` classes, which are renumbered from 0: the model needs at least that many outputs. A source
    that yields `support_*` and `query_*` is used as it is. Only parameters that train are adapted; see `adapt` for new tasks.

    Use it when the classes of tomorrow are not those of today and each comes with a handful of examples.
    Not when the classes are fixed: then plain training on all examples is better and several times cheaper.

    Attributes:
        inner_lr: learning rate of the steps on the support set.
        inner_steps: gradient steps on the support set.
        first_order: leave out second derivatives: about half the memory and time.
        ways: classes per task.
        shots: support examples per class.
        queries: query examples per class.
        tasks: tasks per batch.
        seed: decides which tasks are drawn.

    Example:
        ```yaml
        techniques:
          - MAML: {ways: 5, shots: 5, queries: 5, tasks: 4, inner_lr: 0.05}
        ```
    """

    inner_lr: float = Field(default=0.05, ge=0)
    inner_steps: int = Field(default=1, ge=1)
    first_order: bool = Field(default=False)
    ways: int = Field(default=5, ge=2)
    shots: int = Field(default=5, ge=1)
    queries: int = Field(default=5, ge=1)
    tasks: int = Field(default=4, ge=1)
    seed: int = Field(default=0)

    wraps: ClassVar[frozenset[str]] = frozenset({"source", "objective"})
    reads: ClassVar[frozenset[str]] = frozenset({"support", "query"})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "inner"  # a batch becomes a batch of tasks

    def apply(self, recipe: Recipe) -> Recipe:
        """Draw tasks, and learn to adapt to them, in every stage."""
        return each_stage(
            recipe,
            lambda stage: replace(stage, source=self._episodes(stage), objective=QueryLoss(stage.objective, self)),
        )

    def _episodes(self, stage: Stage[Any]) -> Source:
        """Tasks over the stage's examples, or the stage's source if it yields tasks already."""
        source = stage.source
        if any(key.startswith("support_") for key in source.inputs):
            return source
        if not isinstance(source, Examples) or source.targets is None:
            raise Conflict(
                f"MAML draws tasks from labelled examples or takes support_* and query_*, but the source of stage {stage.name!r} "
                f"is {type(source).__name__} and yields {sorted(source.inputs)}"
            )
        targets = torch.full_like(source.targets, -1)
        targets[source.rows] = source.targets[source.rows]  # rows the source does not draw from are in no task
        return Episodes(
            source.encoded, targets, ways=self.ways, shots=self.shots, queries=self.queries, tasks=self.tasks, seed=self.seed
        )  # fmt: skip

    def adapt(self, model: nn.Module, support: Batch, objective: Objective = cross_entropy) -> nn.Module:
        """A copy of the model after the inner steps on the support examples of a new task; `model` is left as it is."""
        adapted = copy.deepcopy(model)
        fast = descended(
            Bound(objective, adapted), support, Clock(0, 1), rate=self.inner_lr, steps=self.inner_steps, first_order=True
        )  # fmt: skip
        with torch.no_grad():
            for name, parameter in trainable(adapted).items():
                parameter.copy_(fast[f"model.{name}"])
        return adapted
