"""The loop. This is the whole of training; everything else is built before it starts.

    for stage in recipe.stages:
        freeze what the stage does not train; build its step; adopt momentum by parameter name
        hooks: on_start
        for batch in source, from the step the run stands at:
            seed the default generators with (seed, stage, step)
            loss = step(batch, clock)            Step -> Update(s) -> Objective -> model
            clock + 1; log
            hooks: on_step                       validate, checkpoint, average, stop
        hooks: on_end

A run is resumed by building the same recipe and handing `fit` the state a checkpoint holds. Nothing in the loop asks
which technique is on. Losses are read when the log is written; a step reads one number from the device, which says whether all
gradients are finite, before it changes a parameter.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch

from regraft.core.attend import attend, conclude, make_step
from regraft.core.finite import refuse_bad_weights
from regraft.core.modes import train_mode
from regraft.core.protocols import Hook, State
from regraft.core.run import Log, Record, Run
from regraft.core.seeding import seed_default
from regraft.core.stage import Recipe
from regraft.core.state import load_run
from regraft.core.values import Clock


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a recipe's run came to in this process: every logged record, and how each stage ended."""

    history: tuple[Record, ...]
    steps: Mapping[str, int]  # stage -> steps made
    stopped: Mapping[str, str]  # stage -> reason, for the stages that a hook ended early
    seconds: Mapping[str, float]  # stage -> wall-clock seconds in this process
    notes: tuple[str, ...] = ()  # what hooks measured and decided in this process, a sentence each

    def last(self, stage: str | None = None) -> Record:
        """The last record of a stage, or of the run."""
        return [r for r in self.history if stage is None or r["stage"] == stage][-1]


def fit(
    recipe: Recipe,
    *,
    seed: int = 0,
    hooks: Sequence[Hook] = (),
    resume: State | None = None,
    log_every: int = 20,
    log: Log | None = None,
) -> Report:
    """Run every stage of a compiled recipe.

    Args:
        recipe: what `compile` returned.
        seed: with (stage, step) it decides every random number that a model, an objective or an update draws.
        hooks: of the whole run; they act after each stage's own.
        resume: the state of an interrupted run of the same recipe, see `Run.state_dict`.
        log_every: steps between two reads of the losses from the device.
        log: where records are written as they come.

    Returns:
        The report; the models of the recipe hold the trained weights.

    Raises:
        RunError: a loss, a gradient or a weight is not finite, memory does not suffice, or `resume` belongs to another recipe.
    """
    history: list[Record] = []
    steps: dict[str, int] = {}
    stopped: dict[str, str] = {}
    seconds: dict[str, float] = {}
    notes: list[str] = []
    previous: Run | None = None
    with torch.random.fork_rng(devices=_devices()):  # pyright: ignore[reportUnknownMemberType]
        for index in range(resume["stage"] if resume else 0, len(recipe.stages)):
            begin = time.perf_counter()
            run = start(recipe, index, seed=seed, hooks=hooks, log_every=log_every, log=log, previous=previous)
            if resume is not None:
                load_run(run, resume)
                resume = None
            previous = advance(run)
            name = run.stage.name
            history += run.history
            notes += run.notes
            steps[name], seconds[name] = run.clock.step, time.perf_counter() - begin
            stopped |= {name: run.stopped} if run.stopped else {}
    return Report(history=tuple(history), steps=steps, stopped=stopped, seconds=seconds, notes=tuple(notes))


def start(
    recipe: Recipe,
    index: int = 0,
    *,
    seed: int = 0,
    hooks: Sequence[Hook] = (),
    log_every: int = 20,
    log: Log | None = None,
    previous: Run | None = None,
) -> Run:
    """A run about to make the first step of a stage; updates adopt the state of the stage before, by parameter name."""
    stage = recipe.stages[index]
    stage.prepare()
    step = stage.step(stage)
    for name, update in step.updates.items():
        if previous is not None and name in previous.step.updates:
            update.adopt(previous.step.updates[name])
    return attend(Run(recipe, index, step, Clock(0, stage.steps), seed, (*stage.hooks, *hooks), log_every, log))


def advance(run: Run, steps: int | None = None) -> Run:
    """Run the stage to its end, or for `steps` steps."""
    stage, left = run.stage, run.clock.total - run.clock.step
    wanted = left if steps is None else min(left, steps)
    for hook in run.hooks:
        hook.on_start(run)
    train_mode(stage.model)
    trains = stage.model.training  # not where the whole model is steady
    for batch in islice(stage.source.batches(stage.model, run.clock.step), wanted):
        if stage.model.training != trains:  # a hook or a source has evaluated it
            train_mode(stage.model)
        seed_default(run.seed, run.index, run.clock.step)
        loss = make_step(run, batch)
        run.clock = replace(run.clock, step=run.clock.step + 1)
        run.record(loss)
        for hook in run.hooks:
            hook.on_step(run, loss)
        if run.stopped:
            break
    run.flush()
    if run.clock.step == run.clock.total or run.stopped:
        refuse_bad_weights(run)
        conclude(run)
        for hook in run.hooks:
            hook.on_end(run)
    return run


def _devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
