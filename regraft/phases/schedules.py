"""Learning rates step by step, as a recipe or a schedule by itself would give them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from regraft.config.parse import dump_one, load_yaml, parse_one
from regraft.config.recipe import read_recipe
from regraft.core.values import Clock
from regraft.optim.convergence import law_of
from regraft.optim.optimizers import Optimizer
from regraft.optim.schedules import Schedule


def traces(what: str, overrides: Sequence[str] = (), *, steps: int = 1000) -> list[dict[str, Any]]:
    """`{stage, schedule, rates, momenta, conditions}` of each stage of a recipe file, or of one schedule written as in a recipe.

    `rates` are learning rates, or factors for a schedule by itself; `momenta` is None where the momentum stays as it is;
    `conditions` says which of the conditions of Robbins and Monro are satisfied.

    Args:
        what: path of a recipe, or a schedule: `OneCycle`, `{Cosine: {warmup: 0.1}}`.
        overrides: `path.to.field=value`, for a recipe.
        steps: of a stage whose length the recipe does not say.

    Raises:
        ConfigError: there is no such file and no such schedule, or a field is out of its domain.
    """
    if not what.endswith((".yaml", ".yml")) and not Path(what).is_file():
        alone = parse_one(load_yaml(what, "the schedule") if what.startswith("{") else what, "schedule")
        return [_trace("one stage", cast(Schedule, alone), 1.0, steps)]
    spec = read_recipe(Path(what), overrides)
    schedule, optimizer = cast(Schedule, spec.train.schedule), cast(Optimizer, spec.train.optimizer)
    lengths = {stage.name: stage.steps or steps for stage in spec.stages} or {"one stage": steps}
    return [_trace(name, schedule, optimizer.lr, length) for name, length in lengths.items()]


def _trace(stage: str, schedule: Schedule, rate: float, steps: int) -> dict[str, Any]:
    law = law_of(schedule)
    clocks = [Clock(step, steps) for step in range(steps)]
    momenta = [schedule.momentum(clock) for clock in clocks]
    return {
        "stage": stage,
        "schedule": dump_one(schedule),
        "rates": [rate * schedule(clock) for clock in clocks],
        "momenta": momenta if momenta[0] is not None else None,
        "conditions": None if law is None else law.sentence(type(schedule).__name__),
    }
