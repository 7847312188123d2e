"""Looking ahead before a stage runs: its next batches, and a block in which steps can be tried without leaving a trace."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import nn

from regraft.core.modes import train_mode
from regraft.core.run import Run
from regraft.core.values import Batch


def next_batches(run: Run, count: int) -> list[Batch]:
    """The batches of the next `count` steps; the source is left as it was."""
    source = run.stage.source
    before = source.state_dict()
    batches = list(islice(source.batches(run.stage.model, run.clock.step), count))
    source.load_state_dict(before)
    return batches


@contextmanager
def trial(run: Run) -> Generator[None]:
    """Training mode inside; after the block buffers (running statistics) are what they were, and gradients are dropped.

    Random numbers need no care: the loop seeds the generators before every step.
    """
    stage = run.stage
    buffers = [b for part in (stage.model, stage.objective) if isinstance(part, nn.Module) for b in part.buffers()]
    before = [buffer.clone() for buffer in buffers]
    train_mode(stage.model)
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
        for update in run.step.updates.values():
            for parameter in update.params:
                parameter.grad = None
