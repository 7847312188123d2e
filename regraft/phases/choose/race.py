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
from typing import Any

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

    def run_rung(self, entrant: Entrant, number: int, steps: int) -> None:
        """A training of some steps, whose whole schedule they take; the entrant is judged by what it ends with."""
        begin = time.perf_counter()
        spec = entrant.spec.replaced(steps=min(steps, entrant.spec.steps))
        trainer = self._trainer(spec, f"{spec.name}, rung {number}", entrant.weights)
        trainer.until(trainer.total)
        model = trainer.recipe.model
        entrant.result = self.valid.measure(model)
        entrant.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        entrant.rung, entrant.steps = number, entrant.steps + trainer.done
        entrant.seconds += time.perf_counter() - begin

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


def run_race(race: RaceSpec, track: Track, say: Callable[[str], None]) -> tuple[Entrant | None, list[dict[str, Any]]]:
    """The winner after its last rung, and the entries of those that stopped; None where only the probe runs."""
    entries: list[dict[str, Any]] = []
    running: list[Entrant] = []
    for spec in race.candidates:
        if spec.steps == 0:
            continue
        entrant = Entrant(spec)
        try:
            track.runner(entrant)
        except (ConfigError, Conflict, ModelError) as error:
            entrant.status, entrant.reason = "refused", str(error)
            entries.append(entrant.entry())
            say(f"{spec.name} does not take part: {error}")
            continue
        running.append(entrant)
    sizes = field_sizes(len(running), len(race.rungs))
    for number, (rung, stay) in enumerate(zip(race.rungs, [*sizes[1:], 1][: len(sizes)], strict=False), start=1):
        for entrant in running:
            track.run_rung(entrant, number, rung)
        running = standings(running, len(track.valid.targets))
        standing = ", ".join(f"{r.spec.name} {r.result['score']:.4f}" for r in running)
        say(f"rung {number} of {rung:,} steps: {standing}")
        for entrant in running[stay:]:
            entrant.weights = None
            entrant.reason = _why_stopped(entrant, running[0], number, len(track.valid.targets))
            entries.append(entrant.entry())
        running = running[:stay]
    return (running[0] if running else None), entries


def field_sizes(candidates: int, rungs: int) -> list[int]:
    """How many make each rung: after each the better half, rounded up, goes on, and nobody races alone."""
    sizes: list[int] = []
    while len(sizes) < rungs and candidates > 1:
        sizes.append(candidates)
        candidates = (candidates + 1) // 2
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
