"""Running a model once, to look at what its modules take and give."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from regraft.core.forward import forward, inputs_of
from regraft.core.stage import Stage
from regraft.errors import Conflict


def run_once(model: nn.Module, stage: Stage[Any], *, asked_by: str, instead: str) -> None:
    """Call the model on its own example, or on two rows of the first batch of the stage; of tasks, of the first one.

    Raises:
        Conflict: the stage's source yields nothing the model is called on; `asked_by` and `instead`, a way out, are named.
    """
    example = getattr(model, "example", None)
    if example is not None:
        model(**example)
        return
    with torch.random.fork_rng(devices=[]):
        batch = next(iter(stage.source.batches(model, 0)))
    roles = [role for role in ("", "support_") if all(role + key in batch for key in inputs_of(model))]
    if not roles:
        raise Conflict(
            f"{asked_by}: the source of stage {stage.name!r} yields {sorted(batch)}, but the {type(model).__name__} is called "
            f"on {list(inputs_of(model))}, so the shapes of its blocks cannot be seen; {instead}"
        )
    forward(model, {name: (value[0] if roles[0] else value)[:2] for name, value in batch.items()}, prefix=roles[0])
