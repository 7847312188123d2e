"""The only mutable object of training: a run of one stage, and the log it writes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from regraft.core.descent import descents
from regraft.core.finite import refuse_bad_weights
from regraft.core.protocols import Hook, State, Step
from regraft.core.stage import Recipe, Stage
from regraft.core.state import run_state
from regraft.core.values import Clock, Loss
from regraft.errors import RunError

Record = dict[str, float | int | str]  # one logged step: stage, step, loss, weight and the loss's terms


class Log(Protocol):
    """Where records go as they are written, such as events.jsonl."""

    def write(self, records: Sequence[Record], /) -> None:
        """Append records of consecutive steps."""
        ...

    def rewind(self, stage: int, step: int, /) -> None:
        """Forget what was written at and after this point: the run goes on from here."""
        ...


@dataclass
class Run:
    """The moving part: everything that changes while a recipe runs, and nothing else."""

    recipe: Recipe
    index: int  # of the stage
    step: Step
    clock: Clock
    seed: int
    hooks: tuple[Hook, ...]  # the stage's own, then those of the whole run
    log_every: int = 20
    log: Log | None = None
    history: list[Record] = field(default_factory=list[Record])
    pending: list[tuple[int, Loss]] = field(default_factory=list[tuple[int, Loss]])
    stopped: str | None = None
    notes: list[str] = field(
        default_factory=list[str]
    )  # what hooks measured and decided in this process, a sentence each
    passed_over: bool = False  # the step being run changes nothing, so it has no loss to record

    @property
    def stage(self) -> Stage[Any]:
        """The stage that is running."""
        return self.recipe.stages[self.index]

    def stop(self, reason: str) -> None:
        """End the stage after this step."""
        self.stopped = reason

    def judged(self, result: Mapping[str, float]) -> None:
        """Tell schedules that act on validation about a result: `score`, of which more is better, and `loss`."""
        for descent in descents(self.step):
            descent.judged(result)

    def note(self, sentence: str, *, step: int | None = None) -> None:
        """Keep a sentence about what was decided: for the report, and in the log where there is one.

        `step` is the one it belongs to, by default the one made last; what is said within a step belongs to the one being made.
        """
        self.notes.append(sentence)
        if self.log is not None:
            self.flush()
            self.log.write(
                [{"stage": self.stage.name, "step": self.clock.step if step is None else step, "note": sentence}]
            )

    def record(self, loss: Loss) -> None:
        """Note the loss of the step just made; it is read from the device every `log_every` steps."""
        if self.passed_over:
            self.passed_over = False
            return
        self.pending.append((self.clock.step, loss))
        if len(self.pending) >= self.log_every or self.clock.step == self.clock.total:
            self.flush()

    def flush(self) -> None:
        """Read the pending losses from the device, in one transfer, and write them to the log.

        Raises:
            RunError: a loss is not a finite number.
        """
        if not self.pending:
            return
        rows: list[list[Tensor | float]] = [[loss.value, *loss.terms.values(), loss.weight] for _, loss in self.pending]
        values = read([value for row in rows for value in row])
        records: list[Record] = []
        for (step, loss), row in zip(self.pending, rows, strict=True):
            numbers, values = values[: len(row)], values[len(row) :]
            named = zip(("loss", *loss.terms, "weight"), numbers, strict=True)
            records.append({"stage": self.stage.name, "step": step, **dict(named)})
            if not math.isfinite(numbers[0]):
                raise RunError(
                    f"stage {self.stage.name!r}: the loss became {numbers[0]} at step {step:,}; lower the learning rate, "
                    "clip gradients (max_norm), or use precision fp32"
                )
        self.pending.clear()
        self.history += records
        if self.log is not None:
            self.log.write(records)

    def state_dict(self) -> State:
        """Everything the next step depends on, for a checkpoint.

        Raises:
            RunError: a weight is not finite; such a state is not to be gone on from.
        """
        self.flush()
        refuse_bad_weights(self)
        return run_state(self)


def read(values: Sequence[Tensor | float]) -> list[float]:
    """Numbers of tensors () on one device and of plain numbers, the tensors fetched in one transfer as fp32."""
    found = [0.0 if isinstance(value, Tensor) else float(value) for value in values]
    by_type: dict[torch.dtype, list[tuple[int, Tensor]]] = {}  # a conversion for each type, not for each number
    for place, value in enumerate(values):
        if isinstance(value, Tensor):
            by_type.setdefault(value.dtype, []).append((place, value))
    if by_type:
        groups = list(by_type.values())
        together = torch.cat([torch.stack([value for _, value in group]).float() for group in groups])
        fetched = cast(list[float], together.tolist())  # pyright: ignore[reportUnknownMemberType]
        for (place, _), number in zip([pair for group in groups for pair in group], fetched, strict=True):
            found[place] = number
    return found
