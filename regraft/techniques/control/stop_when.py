"""Rules that end a stage where nothing moves any more: a short step, or a small gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from regraft.core import Clock, Hook, Loss, Recipe, Run, Stage, Technique, Update, UpdateWrapper, each_stage
from regraft.core.descent import skipped
from regraft.core.protocols import NamedParams, UpdateBuilder, layers


def norm_of(tensors: Sequence[Tensor]) -> float:
    """The L2 norm over all tensors together; 0 of none."""
    if not tensors:
        return 0.0
    return float(torch.stack(torch._foreach_norm(tensors)).norm())  # type: ignore[attr-defined]


class Measured(UpdateWrapper):
    """The wrapped update, with the norm of its gradient, as it is before clipping, and of the step it makes."""

    def __init__(self, base: Update, *, steps: bool) -> None:
        super().__init__(base)
        self.steps = steps
        self.gradient, self.step = 0.0, 0.0

    def apply(self, clock: Clock) -> None:
        """As the wrapped update; the parameters are copied where the step is to be measured."""
        self.gradient = norm_of([p.grad for p in self.params if p.grad is not None])
        before = [p.detach().clone() for p in self.params] if self.steps else []
        self.base.apply(clock)
        unmade = skipped(self.base)
        self.step = inf if unmade else norm_of([p.detach() - old for p, old in zip(self.params, before, strict=False)])


@dataclass(frozen=True)
class Measuring:
    """Builds an update and wraps it as `Measured`."""

    base: UpdateBuilder
    steps: bool

    def __call__(self, params: NamedParams) -> Update:
        """The update of these parameters."""
        return Measured(self.base(params), steps=self.steps)


class StopRules(Hook):
    """Ends the stage after a step for which a rule holds, and names the rule."""

    def __init__(self, spec: StopWhen) -> None:
        self.spec = spec

    def on_step(self, run: Run, loss: Loss) -> None:
        """Look at all updates of the stage together."""
        measured = [
            each for update in run.step.updates.values() for each in layers(update) if isinstance(each, Measured)
        ]
        gradient, step = (sum(norm**2 for norm in norms) ** 0.5 for norms in
                          ([each.gradient for each in measured], [each.step for each in measured]))  # fmt: skip
        if gradient < self.spec.gradient_norm:
            run.stop(f"the norm of the gradient, {gradient:.3g}, is below {self.spec.gradient_norm:g}")
        elif step < self.spec.step_norm:
            run.stop(f"the norm of the step, {step:.3g}, is below {self.spec.step_norm:g}")


class StopWhen(Technique):
    """Ends a stage at the first step whose length, or whose gradient, is below a bound; the reason is in the report.

    The classic rules for descent: `|w_k+1 - w_k| < eps` and `|g_k| < eps`. The gradient is that of the batch, before clipping.
    Each norm in use is read from the device in every step.
    Of a sampled batch it never is exactly 0, so the bound must lie above the noise: for small batches watch the validation
    score instead (`validate: {patience: 3}`), which also gives back the best weights.

    Use it when the whole data is one batch, or the loss is convex and is to be minimised to a given precision.
    Not against overfitting: that is what validation is for. A schedule that lowers the rate shortens steps without being done.

    Attributes:
        gradient_norm: stop below this norm of the gradient; 0 never does.
        step_norm: stop below this norm of the step, over all weights together; 0 never does. It costs a copy of the weights.

    Example:
        ```yaml
        techniques:
          - StopWhen: {gradient_norm: 1.0e-5}
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"update", "hooks"})

    gradient_norm: float = Field(default=1e-6, ge=0)
    step_norm: float = Field(default=0.0, ge=0)

    def apply(self, recipe: Recipe) -> Recipe:
        """Measure the updates of every stage, and watch them."""
        return recipe if self.gradient_norm == self.step_norm == 0 else each_stage(recipe, self._watched)

    def _watched(self, stage: Stage[Any]) -> Stage[Any]:
        update = Measuring(stage.update, steps=self.step_norm > 0)
        return replace(stage, update=update, hooks=(*stage.hooks, StopRules(self)))
