"""torch.compile behind a measured switch: used where the steps that are left repay the time it takes."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from regraft.core import Hook, Recipe, Run, Stage, Technique, each_stage
from regraft.core.descent import OneUpdate
from regraft.core.protocols import State
from regraft.core.trial import next_batches, trial
from regraft.core.values import Batch
from regraft.errors import ConfigError, Conflict
from regraft.layers.stand_in import has_stand_in, own_forward, replace_forward, restore_forward

LOOK, ROUNDS = 3, 3  # batches that are timed, and how often each
MOST_SAVED = 0.5  # of a step's time, at most, is what a compiled model can be expected to save
FEWEST_SECONDS = 5.0  # a compilation never took less with a cold cache


# ---- the decision


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was measured and what follows; kept in checkpoints, because compiled and eager numbers differ in the last bits."""

    compiled: bool
    sentence: str


def decide(*, steps: int, eager_s: float, compiled_s: float, compile_s: float) -> Decision:
    """Compiled if and only if the time that `steps` steps save is more than the compilation took."""
    gain = steps * (eager_s - compiled_s)
    worth = gain > compile_s
    times = f"{compiled_s * 1e3:.2f} ms a step instead of {eager_s * 1e3:.2f} ms, {compile_s:.1f} s to compile"
    verdict = f"{steps:,} steps {'repay' if worth else 'do not repay'} it ({gain:+.1f} s)"
    return Decision(compiled=worth, sentence=f"Compile: {'compiled' if worth else 'not compiled'}; {times}; {verdict}")


def too_short(*, steps: int, eager_s: float) -> Decision | None:
    """The decision where no speed-up could repay the shortest compilation, which is then not even tried."""
    if steps * eager_s * MOST_SAVED >= FEWEST_SECONDS:
        return None
    return Decision(
        compiled=False,
        sentence=(
            f"Compile: not compiled; {steps:,} steps of {eager_s * 1e3:.2f} ms can save {steps * eager_s * MOST_SAVED:.1f} s "
            f"at most, and compiling takes {FEWEST_SECONDS:.0f} s at least"
        ),
    )


# ---- the model


def compiled_forward(model: nn.Module) -> Callable[..., Any]:
    """The model's forward, compiled for training; without gradients (validation) the eager one is called."""
    with quiet():
        compiled = torch.compile(model.forward)

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return own_forward(module, *args, **kwargs)
        return compiled(*args, **kwargs)

    return call


@contextmanager
def quiet() -> Generator[None]:
    """Without the warnings that the compiler's own modules cause when they are imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def compiler() -> str:
    """The C++ compiler that torch.compile would call."""
    return os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")


# ---- measuring


def measured(run: Run) -> Decision:
    """Time steps without and with a compiled model on the stage's next batches."""
    stage, model = run.stage, run.stage.model
    batches, update = next_batches(run, LOOK), run.step.updates["all"]

    def gradients(batch: Batch) -> float:
        begin = time.perf_counter()
        update.gradients(lambda part: stage.objective(model, part, run.clock), batch)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    with trial(run):
        gradients(batches[0])
        eager_s = statistics.median(gradients(batch) for batch in batches)
        steps = run.clock.total - run.clock.step
        return too_short(steps=steps, eager_s=eager_s) or _tried(gradients, batches, model, steps)


def _tried(gradients: Callable[[Batch], float], batches: Sequence[Batch], model: nn.Module, steps: int) -> Decision:
    begin = time.perf_counter()
    with quiet():
        from torch._dynamo.exc import TorchDynamoException
    call = compiled_forward(model)
    try:
        with quiet(), standing_in(model, call):
            for batch in batches:
                gradients(batch)
    except TorchDynamoException as error:
        reason = str(error).strip().partition("\n")[0]
        return Decision(compiled=False, sentence=f"Compile: not compiled, torch.compile gave up: {reason}")
    compile_s = time.perf_counter() - begin
    eager: list[float] = []
    compiled: list[float] = []
    for _ in range(ROUNDS):  # in turn, so that a busy machine slows both
        eager += [gradients(batch) for batch in batches]
        with standing_in(model, call):
            compiled += [gradients(batch) for batch in batches]
    eager_s, compiled_s = statistics.median(eager), statistics.median(compiled)
    return decide(steps=steps, eager_s=eager_s, compiled_s=compiled_s, compile_s=compile_s)


@contextmanager
def standing_in(model: nn.Module, call: Callable[..., Any]) -> Generator[None]:
    """The model computes `call` inside the block."""
    replace_forward(model, call)
    try:
        yield
    finally:
        restore_forward(model)


# ---- the hook and the technique


class Switch(Hook):
    """Decides when the stage starts, compiles the model if it is worth it, and takes the compiled forward away at its end."""

    def __init__(self, spec: Compile) -> None:
        self.spec = spec
        self.decision: Decision | None = None

    def on_start(self, run: Run) -> None:
        """Decide, unless a checkpoint holds the decision; then compile."""
        if self.decision is None:
            always = Decision(compiled=True, sentence="Compile: compiled, as asked for")
            self.decision = always if self.spec.when == "always" else measured(run)
            run.note(self.decision.sentence)
        if self.decision.compiled and not has_stand_in(run.stage.model):
            replace_forward(run.stage.model, compiled_forward(run.stage.model))

    def on_end(self, run: Run) -> None:
        """The model computes what its class says again."""
        restore_forward(run.stage.model)
        self.decision = None

    def state_dict(self) -> State:
        """The decision: a resumed run takes the same."""
        return {} if self.decision is None else asdict(self.decision)

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        self.decision = Decision(**state) if state else None


class Compile(Technique):
    """Trains with torch.compile where the steps that are left repay the time it takes, and without it where they do not.

    When a stage starts, steps are timed with the model as it is; if a compiled one could save enough, it is compiled and
    timed on the same batches, in turn. The decision is a sentence in the log and stays the same in a resumed run. Names of
    parameters and the saved model are the model's own, validation runs uncompiled, and the stand-in goes when the stage ends.
    Compiled numbers differ from the others in the last bits.

    Use it when training takes minutes and more, above all on a GPU or where a model consists of many small operations. Not
    for short runs, and not where batches come in many shapes that each compile anew.

    Attributes:
        when: repaid measures and decides; always compiles without a look.

    Example:
        ```yaml
        techniques:
          - Compile
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"hooks"})

    when: Literal["repaid", "always"] = Field(default="repaid")

    def apply(self, recipe: Recipe) -> Recipe:
        """Add the hook to every stage.

        Raises:
            ConfigError: there is no C++ compiler on this machine.
        """
        if shutil.which(compiler()) is None:
            raise ConfigError(
                f"Compile: torch.compile needs a C++ compiler, and {compiler()!r} was not found; install one, name it in the "
                "environment variable CXX, or drop Compile"
            )
        return each_stage(recipe, self._switched)

    def _switched(self, stage: Stage[Any]) -> Stage[Any]:
        if stage.step is not OneUpdate:
            raise Conflict(
                f"Compile: the step of stage {stage.name!r} calls parts of the {type(stage.model).__name__} in a way of its own, "
                "so a compiled forward would have no effect; drop Compile"
            )
        return replace(stage, hooks=(*stage.hooks, Switch(self)))  # last: what it times is what will run
