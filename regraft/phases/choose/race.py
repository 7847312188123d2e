"""The race: candidates make short trainings, and after each rung the better half goes on (successive halving).

Jamieson and Talwalkar, 2016, arXiv:1502.07943. Everybody starts from the probe's head, runs on its own copy of the model, and
is judged on validation alone. Unlike there a rung is a training of its own, whose schedule runs to its end: in the middle of
one, candidates with a high learning rate stand far below where they end (Haegele et al., 2024, arXiv:2405.18392, see the same
of language models). The next rung, and the winner's training, begin with the weights that the last one left, so none of its
work is lost (warm restarts: Loshchilov and Hutter, 2017, arXiv:1608.03983).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from regraft.config.parse import dump_one
from regraft.config.recipe import CandidateSpec, RaceSpec
from regraft.core import Hook
from regraft.core.run import Log
from regraft.data.encoded import Encoded
from regraft.errors import ConfigError, Conflict, ModelError
from regraft.phases.training import (
    StepCounter,
    Trainer,
    Valid,
    Validate,
    error_of,
    evenly,
    supervised_recipe,
)

REFUSALS = ConfigError, Conflict, ModelError  # how a technique says that it does not fit
APART = 2.0  # standard errors: the best of several scores is higher than it deserves


@dataclass
class Entrant:
    """A candidate in the race, and what its last rung left."""

    spec: CandidateSpec
    result: dict[str, float] = field(default_factory=dict)
    weights: dict[str, Tensor] | None = None
    rung: int = 0
    steps: int = 0  # of its rungs
    seconds: float = 0.0
    status: str = "stopped"
    reason: str = ""

    def entry(self) -> dict[str, Any]:
        """Its line in metrics.json."""
        return {
            "name": self.spec.name,
            "techniques": [dump_one(t) for t in self.spec.techniques],
            "rule": self.spec.why,
            "valid": {key: value for key, value in self.result.items() if key in ("score", "loss")},
            "steps": self.steps,
            "planned_steps": self.spec.steps,
            "seconds": round(self.seconds, 2),
            "rung": self.rung,
            "status": self.status,
            "reason": self.reason,
        }


@dataclass
class Runner:
    """The winner in its own training."""

    entrant: Entrant
    trainer: Trainer
    validate: Validate

    @property
    def spec(self) -> CandidateSpec:
        """What trains."""
        return self.entrant.spec

    @property
    def steps(self) -> int:
        """Made so far, rungs included."""
        return self.entrant.steps + self.trainer.done

    def finish(self) -> dict[str, float]:
        """Train to the end and put the best weights back; returns their validation result."""
        begin = time.perf_counter()
        self.trainer.until(self.trainer.total)
        restored = self.validate.restore(self.trainer.recipe.model)
        if restored is not None:
            self.entrant.result = restored
        self.entrant.seconds += time.perf_counter() - begin
        return self.entrant.result

    def entry(self) -> dict[str, Any]:
        """Its line in metrics.json."""
        return self.entrant.entry() | {"steps": self.steps}


@dataclass(frozen=True, kw_only=True)
class Track:
    """What all candidates share."""

    model: nn.Module  # with the probe's head; copied for each candidate
    encoded: Encoded
    targets: Tensor
    valid: Valid
    task: str
    seed: int
    validations: int
    patience: int | None
    log_for: Callable[[str], Log]
    tell: Callable[[int, str], None] = lambda steps, note: None
    hooks: Callable[[str], Sequence[Hook]] = lambda name: ()

    def runner(self, entrant: Entrant) -> Runner:
        """The whole training of a candidate, from the weights of its last rung if it ran one.

        Raises:
            Conflict: its techniques do not fit the model or one another.
        """
        spec = entrant.spec
        validate = Validate(self.valid, at=(), patience=self.patience)
        trainer = self._trainer(spec, spec.name, entrant.weights, (validate,), self.hooks(spec.name))
        validate.at = frozenset(evenly(trainer.total, self.validations))
        return Runner(entrant, trainer, validate)

    def rung(self, entrant: Entrant, number: int, steps: int) -> Trainer:
        """A training of some steps, whose whole schedule they take, from the weights of the last rung.

        Raises:
            Conflict: its techniques do not fit the model or one another, or need more steps.
        """
        spec = entrant.spec.replaced(steps=min(steps, entrant.spec.steps))
        return self._trainer(spec, f"{spec.name}, rung {number}", entrant.weights)

    def run_rung(self, entrant: Entrant, number: int, trainer: Trainer) -> None:
        """Train a rung to its end; the entrant is judged by what that leaves."""
        trainer.until(trainer.total)
        model = trainer.recipe.model
        entrant.result = self.valid.measure(model)
        entrant.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        entrant.rung, entrant.steps = number, entrant.steps + trainer.done

    def _trainer(
        self,
        spec: CandidateSpec,
        label: str,
        weights: dict[str, Tensor] | None,
        stage_hooks: Sequence[Hook] = (),
        run_hooks: Sequence[Hook] = (),
    ) -> Trainer:
        recipe = supervised_recipe(
            copy.deepcopy(self.model),
            self.encoded,
            self.targets,
            task=self.task,
            candidate=spec,
            seed=self.seed,
            hooks=stage_hooks,
        )
        if weights is not None:
            recipe.model.load_state_dict(weights)
        return Trainer(recipe, self.seed, (StepCounter(self.tell), *run_hooks), self.log_for(label))


Training = TypeVar("Training", Trainer, Runner)


@dataclass
class Contest:
    """Those who still run, and the entries of those who do not."""

    track: Track
    say: Callable[[str], None]
    running: list[Entrant]
    entries: list[dict[str, Any]] = field(default_factory=list)

    def run_rung(self, number: int, steps: int) -> None:
        """Everybody who can makes the rung; best first afterwards."""
        made: list[Entrant] = []
        for entrant in self.running:
            begin = time.perf_counter()
            trainer = self._fitting(entrant, lambda entrant=entrant: self.track.rung(entrant, number, steps))
            if trainer is not None:
                self.track.run_rung(entrant, number, trainer)
                made.append(entrant)
            entrant.seconds += time.perf_counter() - begin
        self.running = standings(made, len(self.track.valid.targets)) if made else []
        if made:
            standing = ", ".join(f"{r.spec.name} {r.result['score']:.4f}" for r in self.running)
            self.say(f"rung {number} of {steps:,} steps: {standing}")

    def keep(self, size: int, why: Callable[[Entrant, Entrant], str]) -> None:
        """The first `size` go on; `why` says of everybody else why not, with a look at the first."""
        for entrant in self.running[size:]:
            entrant.weights, entrant.reason = None, why(entrant, self.running[0])
            self.entries.append(entrant.entry())
        self.running = self.running[:size]

    def winner(self) -> Runner | None:
        """The first whose whole training can be made; None where there is nobody."""
        while self.running:
            entrant, *rest = self.running
            runner = self._fitting(entrant, lambda entrant=entrant: self.track.runner(entrant))
            if runner is not None:
                self.keep(1, _why_not_compared)
                return runner
            self.running = rest
        return None

    def _fitting(self, entrant: Entrant, make: Callable[[], Training]) -> Training | None:
        """A training of an entrant; None where its techniques do not fit, which becomes its entry."""
        try:
            return make()
        except REFUSALS as error:
            entrant.status, entrant.reason = "refused", str(error)
            self.entries.append(entrant.entry())
            self.say(f"{entrant.spec.name} does not take part: {error}")
            return None


def run_race(race: RaceSpec, track: Track, say: Callable[[str], None]) -> tuple[Runner | None, list[dict[str, Any]]]:
    """The winner, ready for its own training, and the entries of the others; None where only the probe runs."""
    contest = Contest(track, say, [Entrant(spec) for spec in race.candidates if spec.steps])
    rows = len(track.valid.targets)
    for number, rung in enumerate(race.rungs, start=1):
        if len(contest.running) < 2:
            break
        contest.run_rung(number, rung)
        stay = 1 if number == len(race.rungs) else half(len(contest.running))
        contest.keep(stay, partial(_why_stopped, number=number, rows=rows))
    return contest.winner(), contest.entries


def half(running: int) -> int:
    """How many go on after a rung: the better half, rounded up."""
    return (running + 1) // 2


def field_sizes(candidates: int, rungs: int) -> list[int]:
    """How many make each rung: after each the better half, rounded up, goes on, and nobody races alone."""
    sizes: list[int] = []
    while len(sizes) < rungs and candidates > 1:
        sizes.append(candidates)
        candidates = half(candidates)
    return sizes


def standings(entrants: Sequence[Entrant], rows: int) -> list[Entrant]:
    """Best first. Those within `APART` standard errors of the best score stand in the order of the rules, which is their prior.

    A rung is short: what it cannot tell apart on `rows` validation rows, it must not decide. Nor do losses decide, which tell
    more apart: in a short training few weights, which hardly move, have the lower loss, and on sst2 the lower score at the end.
    """
    least = _level_from(max(entrant.result["score"] for entrant in entrants), rows)
    level = [entrant for entrant in entrants if entrant.result["score"] >= least]
    behind = [entrant for entrant in entrants if entrant.result["score"] < least]
    return [*level, *sorted(behind, key=lambda e: (e.result["score"], -e.result["loss"]), reverse=True)]


def _level_from(high: float, rows: int) -> float:
    return high - APART * error_of(high, rows)


def _why_stopped(entrant: Entrant, ahead: Entrant, number: int, rows: int) -> str:
    ours, best = entrant.result["score"], ahead.result["score"]
    behind = ours < _level_from(best, rows)
    verdict, why = ("behind", "") if behind else ("within the noise of", ", which the rules put first")
    return f"rung {number}: {ours:.4f}, {verdict} {ahead.spec.name} ({best:.4f}){why}"


def _why_not_compared(entrant: Entrant, ahead: Entrant) -> str:
    return f"no rung compared {entrant.spec.name} with {ahead.spec.name}, which the rules put first"
