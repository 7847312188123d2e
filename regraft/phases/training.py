"""From a candidate's options to a compiled recipe, and the hooks and the runner that phases train with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from regraft.config.recipe import CandidateSpec, TrainSpec
from regraft.core import Hook, Loss, Recipe, Run, Stage, Technique, compile
from regraft.core.checkpoint import Best, Checkpointer
from regraft.core.descent import Precision
from regraft.core.protocols import State
from regraft.core.run import Log
from regraft.core.state import load_run
from regraft.core.train import advance, start
from regraft.data.augment import Augment
from regraft.data.encoded import Encoded
from regraft.data.sources import Examples, Views
from regraft.errors import ConfigError
from regraft.losses.criterion import objective_of, question_of
from regraft.losses.supervised import per_example_losses
from regraft.optim.build import DescentBuilder
from regraft.optim.optimizers import Optimizer
from regraft.optim.schedules import Schedule
from regraft.phases.choose.features import model_outputs
from regraft.phases.choose.gram import score
from regraft.phases.resolve import scaled
from regraft.transforms.temperature import fit_temperature


def builder(options: TrainSpec) -> DescentBuilder:
    """The update that the training options ask for."""
    return DescentBuilder(
        optimizer=cast(Optimizer, options.optimizer),
        schedule=cast(Schedule, options.schedule),
        micro=options.micro,
        max_norm=options.max_norm,
        max_value=options.max_value,
        precision=options.precision,
    )


def examples(
    encoded: Encoded, targets: Tensor | None, options: TrainSpec, *, seed: int, longest_first: bool = False
) -> Examples:
    """Training batches of encoded examples, augmented if the options say so."""
    augment = Views(usual_augment(flip=options.flip), options.views) if options.augment else None
    if options.views is not None and augment is None:
        raise ConfigError(
            "train.views says how many augmented looks of an image are drawn, so it needs train.augment: true"
        )
    return Examples(
        encoded,
        targets,
        batch_size=options.batch_size,
        seed=seed,
        augment=augment,
        longest_first=longest_first,
    )


def usual_augment(*, flip: bool) -> Augment:
    """Small shifts, turns and changes of light, which leave the label of almost any picture as it is; mirroring only if asked."""
    return Augment(flip=0.5 * flip, translate=0.08, rotate=8.0, brightness=0.2, contrast=0.2)


def supervised_recipe(
    model: nn.Module,
    encoded: Encoded,
    targets: Tensor,
    *,
    task: str,
    candidate: CandidateSpec,
    seed: int,
    hooks: Sequence[Hook] = (),
) -> Recipe:
    """A candidate's compiled recipe: one supervised stage of `candidate.steps` steps, edited by its techniques."""
    candidate = candidate.replaced(train=scaled(candidate.train)[0])
    if candidate.train.steady:
        set_steady(model)
    stage = Stage(
        name="adapt",
        model=model,
        source=examples(encoded, targets, candidate.train, seed=seed),
        objective=objective_of(candidate.train.loss, question_of(task, targets)),
        update=builder(candidate.train),
        steps=candidate.steps,
        hooks=tuple(hooks),
    )
    return compile(Recipe(model=model, stages=(stage,)), [cast(Technique, t) for t in candidate.techniques])


def set_steady(model: nn.Module) -> None:
    """Keep the whole model in eval mode while its weights train, see `core.modes.train_mode`."""
    model.steady = True  # type: ignore[assignment]


# ---- validation


@dataclass(frozen=True, kw_only=True)
class Valid:
    """What validation is done on."""

    encoded: Encoded
    targets: Tensor
    task: str
    precision: Precision = "fp32"
    split: str = "valid"  # where the examples are from

    def measure(self, model: nn.Module) -> dict[str, float]:
        """`score` (higher is better, see `gram.score`) and mean `loss` of the whole model."""
        return self.judge(self.outputs(model))

    def outputs(self, model: nn.Module) -> Tensor:
        """What the model answers, (N, C)."""
        return model_outputs(model, self.encoded, precision=self.precision)

    def judge(self, outputs: Tensor) -> dict[str, float]:
        """Score and loss of outputs that are there already."""
        shown = outputs.sigmoid() if self.task == "multilabel" else outputs
        losses = per_example_losses(outputs, self.targets, self.task)
        return {"score": score(shown, self.targets, self.task), "loss": float(losses.mean())}


class Validate(Hook):
    """Measures the whole model at given steps of the run, keeps the best weights, and stops when nothing improves.

    `at` counts steps over all stages. The best weights are those of the last result that took the place of the one before, see
    `takes_the_place`. They are put back, bit for bit, by `restore`.
    """

    def __init__(self, valid: Valid, *, at: Sequence[int], patience: int | None = None) -> None:
        refuse_test(valid.split)
        self.valid, self.at, self.patience = valid, frozenset(at), patience
        self.results: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_at = -1

    def on_step(self, run: Run, loss: Loss) -> None:
        """Validate if this step is asked for; a stage's last one is left to `on_end`, after weights were averaged."""
        if run.clock.step < run.clock.total:
            self._validate(run)

    def on_end(self, run: Run) -> None:
        """Validate what the stage ended with, if its last step is one of those asked for and was made."""
        if run.clock.step == run.clock.total:
            self._validate(run)

    def _validate(self, run: Run) -> None:
        done = steps_done(run)
        if done not in self.at:
            return
        result = {"step": float(done), **self.valid.measure(run.recipe.model)}
        self.results.append(result)
        run.judged(result)
        if run.log is not None:
            run.flush()
            names = {"score": "valid/score", "loss": "valid/loss"}
            run.log.write(
                [{"stage": run.stage.name, "step": run.clock.step, **{n: result[k] for k, n in names.items()}}]
            )
        if self.best_at < 0 or self._improves(result):
            self.best_at = len(self.results) - 1
            self.best = {name: t.detach().clone() for name, t in run.recipe.model.state_dict().items()}
        elif self.patience is not None and len(self.results) - 1 - self.best_at >= self.patience:
            run.stop(f"no better validation result in {self.patience} evaluations")

    def _improves(self, result: dict[str, float]) -> bool:
        """Does the newest result take the place of the best one?"""
        high = max(each["score"] for each in self.results)
        return takes_the_place(result, self.results[self.best_at], high=high, rows=len(self.valid.targets))

    def restore(self, model: nn.Module) -> dict[str, float] | None:
        """Put the best weights back into the model; returns their result, or None if there was no validation."""
        if self.best_at < 0:
            return None
        model.load_state_dict(self.best)
        return self.results[self.best_at]

    def state_dict(self) -> State:
        """Results so far and the best weights."""
        return {"results": self.results, "best_at": self.best_at, "best": self.best}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        self.results, self.best_at, self.best = list(state["results"]), state["best_at"], dict(state["best"])


def refuse_test(split: str) -> None:
    """Test rows choose nothing: not the best step, not when to stop, not between candidates.

    Raises:
        ConfigError: the split is the one for the final score.
    """
    if split == "test":
        raise ConfigError(
            "a model must be chosen on validation rows, got a judge on the test split, whose score would then flatter it; judge "
            "on `valid`, and score the test rows once at the end"
        )


def better(one: dict[str, float], other: dict[str, float]) -> bool:
    """A higher score; at equal scores a lower loss."""
    return (one["score"], -one["loss"]) > (other["score"], -other["loss"])


def takes_the_place(new: Mapping[str, float], old: Mapping[str, float], *, high: float, rows: int) -> bool:
    """Is a new result better than an old one: of those level with the highest score so far, the one of less loss?

    Level is who stands within half a standard error: a row more or less in 200 says nothing, and the loss sees how sure the
    rest is.
    """
    least = high - 0.5 * error_of(high, rows)
    return new["score"] >= least and (old["score"] < least or new["loss"] < old["loss"])


def error_of(score: float, rows: int) -> float:
    """One standard error of a share of correct answers; 0 for scores that are no share."""
    return math.sqrt(max(score * (1 - score), 1e-4) / rows) if 0 <= score <= 1 else 0.0


def tempered_losses(outputs: Tensor, targets: Tensor, task: str) -> Tensor:
    """(N,) losses of outputs (N, C) at the temperature that suits them best, where they are of classes.

    How sure a model is, calibration puts right later; it must not decide between models that know the same.
    """
    if task in ("binary", "multiclass"):
        outputs = outputs / fit_temperature(outputs.numpy(), targets.numpy())
    return per_example_losses(outputs, targets, task)


def above_its_error(gain: Tensor) -> bool:
    """Is the mean of differences (N,), one for each row, above one standard error of it?"""
    return bool(gain.mean() > gain.std() / math.sqrt(len(gain))) if len(gain) > 1 else False


def evenly(steps: int, times: int) -> list[int]:
    """`times` step numbers, evenly spaced, the last being `steps`."""
    return sorted({max(1, round(steps * (k + 1) / times)) for k in range(times)})


def steps_done(run: Run) -> int:
    """Steps made over all stages so far."""
    return sum(stage.steps for stage in run.recipe.stages[: run.index]) + run.clock.step


# ---- running in portions


@dataclass
class Trainer:
    """Runs a compiled recipe, in portions where that is wanted."""

    recipe: Recipe
    seed: int
    hooks: tuple[Hook, ...] = ()
    log: Log | None = None
    on_portion: Callable[[int], None] = lambda steps: None
    run: Run | None = None
    finished: bool = False
    stopped: str | None = field(default=None)

    @property
    def total(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.recipe.stages)

    @property
    def done(self) -> int:
        """Steps made so far."""
        return 0 if self.run is None else steps_done(self.run)

    def begin(self) -> Run:
        """The run; before its first step if there was none."""
        if self.run is None:
            self.run = self._start(0, None)
        return self.run

    def until(self, target: int) -> None:
        """Make steps until `target` of them are made over all stages, or a hook stops the run for good."""
        with torch.random.fork_rng(devices=[]):
            while not self.finished and self.done < target:
                run = self.begin()
                before = run.clock.step
                advance(run, min(target - self.done, run.clock.total - run.clock.step))
                self.on_portion(run.clock.step - before)
                if run.clock.step == run.clock.total or run.stopped:
                    self._next_stage(run)

    def _next_stage(self, run: Run) -> None:
        self.stopped = run.stopped
        if run.stopped or run.index + 1 == len(self.recipe.stages):
            self.finished = True
            return
        self.run = self._start(run.index + 1, run)

    def _start(self, index: int, previous: Run | None) -> Run:
        return start(self.recipe, index, seed=self.seed, hooks=self.hooks, log=self.log, previous=previous)

    def enable_checkpoints(self, *, best: Best | None, later: int) -> None:
        """From now on the run's checkpointers save: only the winner of a race can be resumed within its training.

        Args:
            best: which ones they keep for their score.
            later: bytes that hooks will add to the state.
        """
        for hook in self.checkpointers():
            hook.enabled, hook.best, hook.later = True, best, later

    def checkpointers(self) -> list[Checkpointer]:
        """The hooks that save the run."""
        return [hook for hook in self.hooks if isinstance(hook, Checkpointer)]

    def load(self, state: State | None) -> None:
        """Stand where a checkpoint was made; None is the start. What was logged of later steps is dropped."""
        if state is None:
            if self.log is not None:
                self.log.rewind(0, 0)
            return
        run = self._start(int(state["stage"]), None)
        load_run(run, state)
        self.run = run


class Endings(Hook):
    """Remembers across a resume why stages ended before their last step."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def on_end(self, run: Run) -> None:
        """Take the reason down, if there was one."""
        if run.stopped is not None:
            self.reasons[run.stage.name] = run.stopped

    def state_dict(self) -> State:
        """The reason of each stage that ended early."""
        return {"reasons": self.reasons}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        self.reasons = dict(state["reasons"])


class StepCounter(Hook):
    """Tells a callback about every step: how many, and the loss as it was last read."""

    def __init__(self, tell: Callable[[int, str], None], every: int = 5) -> None:
        self.tell, self.every, self.waiting = tell, every, 0

    def on_step(self, run: Run, loss: Loss) -> None:
        """Count; speak every few steps."""
        self.waiting += 1
        if self.waiting >= self.every or run.clock.step == run.clock.total:
            note = f"loss {run.history[-1]['loss']:.3f}" if run.history else ""
            self.tell(self.waiting, note)
            self.waiting = 0


def newest_score(results: Sequence[Mapping[str, float]], run: Run) -> float | None:
    """The score of the newest validation result, if it is of the step just made."""
    return results[-1]["score"] if results and results[-1]["step"] == steps_done(run) else None


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in model.state_dict().values() if isinstance(t, Tensor))


def epochs_of(steps: int, rows: int, batch_size: int) -> float:
    """How often `steps` batches go through `rows` examples."""
    return steps / max(1, math.ceil(rows / batch_size))


def as_numpy(tensor: Tensor) -> np.ndarray:
    """The tensor's values as float64, or int64 where it holds integers."""
    return tensor.detach().cpu().numpy().astype(np.int64 if tensor.dtype == torch.int64 else np.float64)
