"""A leg of a trial: the recipe at its point, trained from where the leg before it ended, judged on validation rows, and saved.

What the legs of one process have in common is made once: the data read and encoded, and the models before training. Results of
frozen parts are shared between processes through the cache folder, where they are found by what decides them.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from regraft.config.plain_json import plain_json
from regraft.config.plain_yaml import plain_yaml
from regraft.config.recipe import MAIN, ModelSpec, RecipeSpec, StageSpec, dump_recipe, read_recipe
from regraft.core import Hook, Run, forward
from regraft.core.checkpoint import Checkpointer, find_newest
from regraft.core.descent import descents
from regraft.core.files import discard, replace_file
from regraft.core.modes import eval_mode
from regraft.core.protocols import State
from regraft.core.snapshot import load, save
from regraft.core.state import load_run
from regraft.core.stopping import Stop, listening
from regraft.core.train import start
from regraft.errors import ConfigError, DiskError, RegraftError, RunError
from regraft.optim.schedules import Schedule
from regraft.phases.build import Assembled, Ground, assemble, lay_ground
from regraft.phases.entries import Entry
from regraft.phases.evaluate.latency import latency
from regraft.phases.judges import Judge, Watch, judge_for
from regraft.phases.resolve import resolved
from regraft.phases.rundir import EVENTS, RECIPE, EventLog
from regraft.phases.training import Trainer, Valid, weight_bytes
from regraft.phases.working import locked
from regraft.search.legs import COMPLETE, FAIL, Leg, Outcome
from regraft.search.space import Space

TRIALS, RUNGS = "trials", "rungs"
GROUNDS = 3  # sets of data and models that are kept for other trials
WAIT = 15.0  # seconds for another process to let go of a trial: one whose search was killed ends within a second


def run_leg(payload: Mapping[str, Any], stop: Stop | None = None) -> dict[str, Any]:
    """The outcome of a leg, as JSON values; what workers are given to do.

    Args:
        payload: `out`, the folder of the search, and `leg`. A leg that has ended before is not run again.
        stop: who asks the process to stop; default its signals.

    Raises:
        Interrupted: the process was asked to stop; the leg has saved where it stood.
        RunError: another process is at work on the trial, or the disk is full: no fault of the trial, so it has no outcome.
    """
    leg = Leg(**payload["leg"])
    out = Path(payload["out"])
    folder = trial_folder(out, leg.trial)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        _lock(stack, folder)
        done = outcome_of(folder, leg.number)
        if done is not None:
            return done.to_json()
        asked = stack.enter_context(listening()) if stop is None else stop
        file = out / RECIPE
        outcome = _ran(leg, folder, workplace(file, file.stat().st_mtime_ns), asked)
        replace_file(_file(folder, leg.number), json.dumps(outcome.to_json(), allow_nan=False).encode())
        discard(_checkpoints(folder, leg.number))
    return outcome.to_json()


def trial_folder(out: Path, trial: int) -> Path:
    """Where a trial lies."""
    return out / TRIALS / f"{trial:04d}"


def outcome_of(folder: Path, leg: int) -> Outcome | None:
    """How a leg ended, or None where it did not yet."""
    file = _file(folder, leg)
    return Outcome(**plain_json(file.read_bytes())) if file.is_file() else None


def _file(folder: Path, leg: int) -> Path:
    return folder / f"leg-{leg:05d}.json"


def _checkpoints(folder: Path, leg: int) -> Path:
    return folder / f"leg-{leg:05d}"


def _lock(stack: ExitStack, folder: Path) -> None:
    """The trial for this process alone."""
    deadline = time.monotonic() + WAIT
    while True:
        try:
            stack.enter_context(locked(folder))
            return
        except RunError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _ran(leg: Leg, folder: Path, place: Workplace, stop: Stop) -> Outcome:
    begin = time.perf_counter()
    try:
        outcome = Running(leg, folder, place, stop).outcome()
    except DiskError:  # no fault of the trial
        raise
    except (RegraftError, RuntimeError, ValueError) as error:  # torch says with a RuntimeError that shapes do not fit
        said = str(error) if isinstance(error, RegraftError) else f"{type(error).__name__}: {error}"
        outcome = Outcome(leg=leg.number, state=FAIL, reason=said)
    return replace(outcome, seconds=time.perf_counter() - begin)


# ---- what legs have in common


@lru_cache(maxsize=2)
def workplace(file: Path, changed: int) -> Workplace:
    """What the legs of the search with this recipe file share, as long as the file does not change."""
    return Workplace(read_recipe(file))


class Workplace:
    """The recipe and its space, and the data and models that were made for earlier legs."""

    def __init__(self, spec: RecipeSpec) -> None:
        if spec.search is None:
            raise ConfigError("search: the recipe has no section `search:` that says what is searched over")
        self.spec, self.search = spec, spec.search
        self.space = Space(self.search.space)
        self.tree = plain_tree(spec)
        self.entries: dict[str, Mapping[str, Entry]] = {}
        self.grounds: dict[str, Ground] = {}
        self.made = 0  # times that data was read and encoded, over all legs

    def recipe(self, leg: Leg) -> RecipeSpec:
        """The recipe of a leg: with the fidelity `data`, on its share of the rows and with steps in proportion."""
        spec = shared_store(resolved(self.space.recipe(self.tree, leg.drawn)))
        if not self.on_data or leg.share == 1:
            return spec
        rows = len(self.ground(spec).entries[MAIN].materials.rows("train"))
        data = spec.main_data().replaced(limit=max(2, math.ceil(leg.share * rows)))
        stages = tuple(stage.replaced(steps=max(1, round(leg.share * stage.steps))) for stage in spec.stages)
        return spec.replaced(data={**spec.data, MAIN: data}, stages=stages)

    @property
    def on_data(self) -> bool:
        """Is the fidelity a share of the rows?"""
        return self.search.fidelity is not None and self.search.fidelity.data is not None

    def ground(self, spec: RecipeSpec) -> Ground:
        """The data and models of a recipe, made once for all recipes that have the same. Not to be trained: see `fresh`."""
        parts = spec.replaced(
            train={}, techniques=(), search=None, stages=tuple(stage.replaced(steps=1) for stage in spec.stages)
        )
        key = dump_recipe(parts)
        if key not in self.grounds:
            read = dump_recipe(parts.replaced(models=_as_read(spec), probe=None))
            ground = lay_ground(spec, entries=self.entries.get(read))
            self.made += read not in self.entries
            _keep(self.entries, read, ground.entries)
            _keep(self.grounds, key, ground)
        return self.grounds[key]

    def fresh(self, spec: RecipeSpec) -> Ground:
        """The same, with models of its own."""
        ground = self.ground(spec)
        base, models = copy.deepcopy((ground.base, dict(ground.models)))
        return replace(ground, base=base, models=models)


def _as_read(spec: RecipeSpec) -> dict[str, ModelSpec]:
    """What of the main model decides how data is encoded for it."""
    main = spec.main_model()
    return {MAIN: ModelSpec(name=main.name, max_length=main.max_length, image_size=main.image_size)}


def _keep(known: dict[str, Any], key: str, value: Any) -> None:
    """Keep a value, and of the others the newest few."""
    while len(known) >= GROUNDS and key not in known:
        del known[next(iter(known))]
    known[key] = value


def plain_tree(spec: RecipeSpec) -> dict[str, Any]:
    """The plain values of a recipe, without its section `search:`."""
    return cast(dict[str, Any], plain_yaml(dump_recipe(spec.replaced(search=None))))


def shared_store(spec: RecipeSpec) -> RecipeSpec:
    """The recipe with results of frozen prefixes kept in the cache folder, where other trials find the same bits."""
    kept = tuple(
        technique.replaced(keep="disk") if type(technique).__name__ == "CachePrefix" else technique
        for technique in spec.techniques
    )
    return spec if kept == spec.techniques else spec.replaced(techniques=kept)


# ---- one leg


class Running:
    """A leg under way."""

    def __init__(self, leg: Leg, folder: Path, place: Workplace, stop: Stop) -> None:
        self.leg, self.folder, self.place, self.stop = leg, folder, place, stop
        self.spec = place.recipe(leg)
        text = dump_recipe(self.spec).encode()
        if not (folder / RECIPE).is_file() or (folder / RECIPE).read_bytes() != text:
            replace_file(folder / RECIPE, text)

    def outcome(self) -> Outcome:
        """Train, judge and save.

        Raises:
            RegraftError: the recipe cannot be trained, or its loss is not finite.
        """
        before = self._before()
        if before is not None and before.finished:
            return replace(before, leg=self.leg.number, steps=0, epochs=0.0)
        assembled = assemble(self.spec, ground=self.place.fresh(self.spec), hooks=self._watch)
        judge = judge_for(self.spec.techniques, assembled.main, "valid", precision=self.spec.train.precision)
        if judge is None:
            raise ConfigError("search: nobody can judge this model on validation rows, so trials cannot be compared")
        reached = 0 if before is None else before.reached
        trainer = self._trained(assembled, reached)
        measured = judge.measure(assembled.recipe.model)
        if not all(math.isfinite(value) for value in measured.values()):
            raise RunError(f"the validation loss is {measured['loss']}")
        self._save(trainer)
        steps = trainer.done - reached
        rows = len(assembled.main.materials.rows("train")) / (self.leg.share if self.place.on_data else 1)
        return Outcome(
            leg=self.leg.number, state=COMPLETE, score=measured["score"], loss=measured["loss"], steps=steps,
            reached=trainer.done, finished=trainer.finished, epochs=steps * self.spec.train.batch_size / rows,
            model=model_facts(assembled, judge),
        )  # fmt: skip

    def _before(self) -> Outcome | None:
        """How the leg that this one goes on from ended; None where it begins anew."""
        if self.leg.after is None or self.place.on_data:
            return None
        return outcome_of(self._source(), self.leg.after)

    def _source(self) -> Path:
        """The folder of the trial whose end this leg goes on from."""
        return self.folder.with_name(f"{self.leg.source:04d}")

    def _watch(self, stage: StageSpec, entry: Entry) -> Sequence[Hook]:
        """Validation within a stage, where it decides when the stage ends, or what the learning rate is."""
        judge = judge_for(self.spec.techniques, entry, "valid", precision=self.spec.train.precision)
        decides = self.spec.validate_.patience is not None or cast(Schedule, self.spec.train.schedule).remembers
        return [Watch(judge, self.spec.validate_)] if decides and judge is not None else []

    def _trained(self, assembled: Assembled, reached: int) -> Trainer:
        """The recipe trained up to the leg's share of its steps."""
        checkpoints = _checkpoints(self.folder, self.leg.number)
        saving = Checkpointer(checkpoints, every=self.spec.checkpoint.every_steps, keep=1, stop=self.stop)
        log = EventLog(self.folder / EVENTS, candidate=f"trial {self.leg.trial}")
        trainer = Trainer(assembled.recipe, self.spec.seed, (saving,), log)
        target = trainer.total if self.place.on_data else max(1, round(self.leg.share * trainer.total))
        copied = self.leg.source not in (None, self.leg.trial)
        found, _ = find_newest(checkpoints)
        if found is not None:
            _put(trainer, found[0], copied=copied)
        elif reached:
            _put(trainer, load(self._source() / RUNGS / f"leg-{self.leg.after:05d}"), copied=copied)
        else:
            trainer.load(None)
        with self.stop.held(), saving:
            trainer.until(target)
        return trainer

    def _save(self, trainer: Trainer) -> None:
        """The state for the leg that may come next; the end before the last one is kept, others may be copying it."""
        if self.leg.share == 1 or self.place.on_data or trainer.run is None:
            return
        rungs = self.folder / RUNGS
        save(rungs / f"leg-{self.leg.number:05d}", trainer.run.state_dict())
        for old in sorted(rungs.glob("leg-*"))[:-2]:
            discard(old)


def _put(trainer: Trainer, state: State, *, copied: bool) -> None:
    """Stand where a state was saved; one that is `copied` from another trial, with the optimizer's options of this recipe."""
    run = start(trainer.recipe, int(state["stage"]), seed=trainer.seed, hooks=trainer.hooks, log=trainer.log)
    options = [_options(group) for group in _groups(run)]
    load_run(run, state)
    if copied:
        for group, own in zip(_groups(run), options, strict=True):
            group.update(own)
    trainer.run = run


def _groups(run: Run) -> list[dict[str, Any]]:
    return [group for descent in descents(run.step) for group in descent.optimizer.param_groups]


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an optimizer's group that a recipe decides: not what it counts, and the rate is set anew at every step."""
    return {name: value for name, value in group.items() if name not in ("params", "lr", "step")}


def model_facts(assembled: Assembled, judge: Judge) -> dict[str, Any]:
    """Parameters, those that are trained, bytes of all weights, and milliseconds of one prediction."""
    model = assembled.recipe.model
    trained = {id(p): p.numel() for stage in assembled.recipe.stages for p in stage.trainable().values()}
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained": sum(trained.values()),
        "bytes": weight_bytes(model),
        "latency_ms": milliseconds(model, judge) if isinstance(judge, Valid) else None,
    }


def milliseconds(model: nn.Module, judge: Valid) -> float:
    """The median time of a prediction of one example."""
    batch = judge.encoded.collate(np.arange(1))
    with eval_mode(model), torch.no_grad():
        times = latency(lambda one: forward(model, one), [batch], warmup=2, runs=9).milliseconds
    return float(np.median(times))
