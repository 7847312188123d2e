"""Ends of a run at an exact point: at a step, between two slices of a batch, inside an evaluation, between stages and phases.

`strike(at, how)` is called in a process of its own (see `lab.Forked`), patches what has to be patched there, and hands back the
reporter to run with.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal

import torch
from faults.lab import DIED, Crash
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook

from regraft.core import train as loop
from regraft.phases import judges, training
from regraft.phases.progress import Silent

How = Literal["raise", "exit"]


@dataclass(frozen=True)
class Point:
    """Where a run ends: within a phase, if one is named."""

    kind: Literal["step", "slice", "evaluation", "measure", "stage", "phase"]
    number: int = (
        0  # step: made in the phase; slice: of the step after `number`; evaluation, measure, stage: which, from 0
    )
    phase: str = ""


class Reporter(Silent):
    """Counts the steps of each phase, and tells listeners of steps and phases."""

    def __init__(self, tell: Callable[[int], None] = lambda step: None) -> None:
        self.steps, self.now = 0, ""
        self.on_step: list[Callable[[int], None]] = [tell]
        self.on_phase: list[Callable[[str], None]] = []
        self.sentences: list[str] = []

    def phase(self, name: str, what: str, /) -> None:
        self.now, self.steps = name, 0
        for listener in self.on_phase:
            listener(name)

    def advance(self, done: int, note: str = "", /) -> None:
        self.steps += done
        for listener in self.on_step:
            listener(self.steps)

    def say(self, sentence: str, /) -> None:
        self.sentences.append(sentence)

    def within(self, point: Point) -> bool:
        """Is this the phase that the point is in?"""
        return point.phase in ("", self.now)


def die(how: How) -> None:
    """The end: as an error that nothing handles, or without a word. A checkpoint that is being written is finished before."""
    for thread in threading.enumerate():
        if thread.name == "checkpoint":  # else it would depend on timing which one is gone on from
            thread.join()
    if how == "exit":
        os._exit(DIED)
    raise Crash


def strike(at: Point, how: How) -> Reporter:
    """A reporter for a run that will end at a point; patches this process for good."""
    reporter = Reporter()

    def end() -> None:
        die(how)

    if at.kind == "step":
        reporter.on_step.append(lambda step: end() if step >= at.number and reporter.within(at) else None)
    elif at.kind == "slice":
        _in_slice(reporter, at, end)
    elif at.kind == "evaluation":
        _in_evaluation(reporter, judges.Watch, "_validate", at, end)
    elif at.kind == "measure":
        _in_evaluation(reporter, training.Valid, "outputs", at, end)
    elif at.kind == "stage":
        _between_stages(reporter, at, end)
    else:
        reporter.on_phase.append(lambda name: end() if name == at.phase else None)
    return reporter


def _in_slice(reporter: Reporter, at: Point, end: Callable[[], None]) -> None:
    """Dies as the second backward pass of a step begins: of a batch in two slices the first has left its gradient."""
    seen = {"passes": 0}
    original = Tensor.backward

    @wraps(original)
    def backward(self: Tensor, *args: Any, **options: Any) -> Any:
        if reporter.steps >= at.number and reporter.within(at):
            seen["passes"] += 1
            if seen["passes"] == 2:
                end()
        return original(self, *args, **options)

    Tensor.backward = backward  # type: ignore[method-assign]


def _in_evaluation(reporter: Reporter, owner: type, name: str, at: Point, end: Callable[[], None]) -> None:
    """Dies after two modules of the network were called in an evaluation of the phase."""
    state = {"evaluation": -1, "calls": 0, "inside": False}
    original = getattr(owner, name)

    def counted(module: torch.nn.Module, given: Any, output: Any) -> None:
        if state["inside"] and state["evaluation"] == at.number:
            state["calls"] += 1
            if state["calls"] == 2:
                end()

    @wraps(original)
    def call(*args: Any, **options: Any) -> Any:
        if not reporter.within(at):
            return original(*args, **options)
        state["evaluation"], state["inside"] = state["evaluation"] + 1, True
        try:
            return original(*args, **options)
        finally:
            state["inside"] = False

    register_module_forward_hook(counted)
    setattr(owner, name, call)


def _between_stages(reporter: Reporter, at: Point, end: Callable[[], None]) -> None:
    """Dies when the stage of that number, or a later one, is ready for its first step."""
    for module in (loop, training):
        original = module.start

        def begun(recipe: Any, index: int = 0, *, _original: Any = original, **options: Any) -> Any:
            run = _original(recipe, index, **options)
            if index >= at.number and reporter.within(at):
                end()
            return run

        module.start = begun


def watch_states(found: list[Callable[[], Any]]) -> None:
    """Keeps, in `found`, how to get the whole state of a run whose portion has ended; the last one is the run's end."""
    for module in (loop, training):
        original = module.advance

        def advanced(run: Any, *args: Any, _original: Any = original, **options: Any) -> Any:
            ended = _original(run, *args, **options)
            found.append(lambda: ended.state_dict())
            return ended

        module.advance = advanced
