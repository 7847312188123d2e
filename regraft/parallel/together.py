"""A stage trained by several processes together, which are compared with each other now and then."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from regraft.core.descent import Descent, descents
from regraft.core.micro_batch import why_whole
from regraft.core.modes import train_mode
from regraft.core.protocols import Hook, layers
from regraft.core.ranks import Ranks
from regraft.core.run import Run
from regraft.core.values import Loss
from regraft.errors import ConfigError, RunError

WHOLE = {
    1: torch.uint8,
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
}  # bytes of a number -> the type its bits are read as


class Together(Hook):
    """Has every step of a run made by several processes, and sees to it that they hold the same weights all along.

    It belongs before the hooks that save: what the processes do not agree on is not to be gone on from. All processes call
    `fit` with the same recipe, seed and state, and with hooks that decide the same.

    Args:
        ranks: the processes.
        every: steps between two comparisons; the first step is one of them, and so is the end of each stage.
    """

    def __init__(self, ranks: Ranks, *, every: int = 100) -> None:
        self.ranks, self.every = ranks, every

    def on_start(self, run: Run) -> None:
        """From here on the updates of the stage sum their gradients over all processes.

        Raises:
            ConfigError: a batch of the stage cannot be cut, or an update makes gradients in a way of its own.
        """
        train_mode(run.stage.model)
        why = why_whole(run.stage)
        for name, update in run.step.updates.items():
            if not any(isinstance(inner, Descent) for inner in layers(update)):
                why = f"the update {name!r} makes gradients in a way of its own"
        if why is not None:
            raise ConfigError(
                f"stage {run.stage.name!r}: `processes: {self.ranks.count}` cuts each batch in {self.ranks.count}, but {why}; "
                "use one process"
            )
        for descent in descents(run.step):
            descent.ranks = self.ranks
        if run.index == 0 and run.clock.step == 0:
            run.note(f"each step is made by {self.ranks.count} processes together")
        self._compare(run)

    def on_step(self, run: Run, loss: Loss) -> None:
        """After the first step, and every so many."""
        if run.clock.step == 1 or run.clock.step % self.every == 0:
            self._compare(run)

    def on_end(self, run: Run) -> None:
        """Before the stage's weights are handed on."""
        self._compare(run)

    def _compare(self, run: Run) -> None:
        own = fingerprint([*run.stage.model.state_dict().values(), *run.stage.trainable().values()])
        total = own.clone()
        self.ranks.sum(total)
        if int(total) != int(own * self.ranks.count):
            raise RunError(
                f"stage {run.stage.name!r}: the {self.ranks.count} processes hold different weights after step "
                f"{run.clock.step:,}, so one of them has drawn or decided differently; use one process"
            )


def fingerprint(tensors: Iterable[Tensor]) -> Tensor:
    """(1,) int64 that changes with any bit of the tensors: the sum of their bits as numbers, each tensor's times its place."""
    total = torch.zeros(1, dtype=torch.int64)
    for place, tensor in enumerate(tensors, start=1):
        bits = tensor.detach().contiguous().reshape(-1).view(WHOLE[tensor.element_size()])
        total += place * bits.sum(dtype=torch.int64).cpu()
    return total
