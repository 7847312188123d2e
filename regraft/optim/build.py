"""The default update of a recipe: optimizer, schedule, accumulation, clipping and precision in one builder."""

from __future__ import annotations

from dataclasses import dataclass, field

from regraft.core.descent import Descent
from regraft.core.precision import Precision
from regraft.core.protocols import NamedParams, UpdateBuilder, layers
from regraft.optim.optimizers import Optimizer
from regraft.optim.schedules import Constant, Schedule


@dataclass(frozen=True, kw_only=True)
class DescentBuilder:
    """Builds a `Descent` once the parameters are known; see there for what the options mean."""

    optimizer: Optimizer
    schedule: Schedule = field(default_factory=lambda: Constant())
    micro: int = 1
    max_norm: float | None = None
    max_value: float | None = None
    precision: Precision = "fp32"

    def __call__(self, params: NamedParams) -> Descent:
        """The update of these parameters."""
        return Descent(
            params,
            self.optimizer.build,
            micro=self.micro,
            max_norm=self.max_norm,
            max_value=self.max_value,
            schedule=self.schedule.begin(),
            momentum=self.schedule.momentum,
            precision=self.precision,
        )

    def describe(self) -> str:
        """`Descent(AdamW, Cosine, bf16)`."""
        parts = [type(self.optimizer).__name__, type(self.schedule).__name__, self.precision]
        return f"Descent({', '.join(parts)})"


def precision_of(update: UpdateBuilder) -> Precision:
    """The precision of the `DescentBuilder` at the bottom of what wraps it; fp32 of an update of another make."""
    built = next((each for each in layers(update) if isinstance(each, DescentBuilder)), None)
    return "fp32" if built is None else built.precision
