"""The race: candidates train in portions, and after each rung the better half goes on (successive halving).

Jamieson and Talwalkar, 2016, arXiv:1502.07943. Everybody starts from the probe's head, runs on its own copy of the model, and
is judged on validation alone. The winner goes on from where it stands, so nothing of its work is lost.
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
from regraft.phases.training import StepCounter, Trainer, Valid, Validate, error_of, evenly, supervised_recipe


@dataclass
class Runner:
    """A candidate in the race."""

    spec: CandidateSpec
    trainer: Trainer
    validate: Validate
    result: dict[str, float] = field(default_factory=dict)
    rung: int = 0
    seconds: float = 0.0
    status: str = "running"
    reason: str = ""

    def entry(self) -> dict[str, Any]:
        """Its line in metrics.json."""
        return {
            "name": self.spec.name,
            "techniques": [dump_one(t) for t in self.spec.techniques],
            "rule": self.spec.why,
            "valid": {key: value for key, value in self.result.items() if key in ("score", "loss")},
            "steps": self.trainer.done,
            "planned_steps": self.spec.steps,
            "seconds": round(self.seconds, 2),
            "rung": self.rung,
            "status": self.status,
            "reason": self.reason,
        }


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

    def runner(self, spec: CandidateSpec) -> Runner:
        """A candidate at the start line.

        Raises:
            Conflict: its techniques do not fit the model or one another.
        """
        model = copy.deepcopy(self.model)
        validate = Validate(self.valid, at=(), patience=self.patience)
        recipe = supervised_recipe(
            model, self.encoded, self.targets, task=self.task, candidate=spec, seed=self.seed, hooks=(validate,)
        )
        validate.at = frozenset(evenly(sum(stage.steps for stage in recipe.stages), self.validations))
        hooks = (StepCounter(self.tell), *self.hooks(spec.name))
        return Runner(spec, Trainer(recipe, self.seed, hooks, self.log_for(spec.name)), validate)


def run_race(race: RaceSpec, track: Track, say: Callable[[str], None]) -> tuple[Runner | None, list[dict[str, Any]]]:
    """The winner, standing after its last rung, and the entries of those that stopped; None where only the probe runs."""
    entries: list[dict[str, Any]] = []
    running: list[Runner] = []
    for spec in race.candidates:
        if spec.steps == 0:
            continue
        try:
            running.append(track.runner(spec))
        except (ConfigError, Conflict, ModelError) as error:
            entries.append(_refused(spec, str(error)))
            say(f"{spec.name} does not take part: {error}")
    for number, rung in enumerate(race.rungs, start=1):
        if len(running) < 2:
            break
        for runner in running:
            _to_rung(runner, rung, number, track)
        running = standings(running, len(track.valid.targets))
        stay = max(1, len(running) // 2)
        standing = ", ".join(f"{r.spec.name} {r.result['score']:.4f}" for r in running)
        say(f"rung {number} at {rung:,} steps: {standing}")
        for runner in running[stay:]:
            runner.status = "stopped"
            ours, ahead = runner.result["score"], running[0]
            noise = error_of(ahead.result["score"], len(track.valid.targets))
            behind = ours < ahead.result["score"] - noise
            verdict = "behind" if behind else "within the noise of"
            why = "" if behind else ", which the rules put first"
            runner.reason = f"rung {number}: {ours:.4f}, {verdict} {ahead.spec.name} ({ahead.result['score']:.4f}){why}"
            entries.append(runner.entry())
        running = running[:stay]
    return (running[0] if running else None), entries


def standings(runners: Sequence[Runner], rows: int) -> list[Runner]:
    """Best first. Those within one standard error of the best score stand in the order of the rules, which is their prior.

    A rung is short: what it cannot tell apart on `rows` validation rows, it must not decide.
    """
    high = max(runner.result["score"] for runner in runners)
    error = error_of(high, rows)
    level = [runner for runner in runners if runner.result["score"] >= high - error]
    behind = [runner for runner in runners if runner.result["score"] < high - error]
    return [*level, *sorted(behind, key=lambda r: (r.result["score"], -r.result["loss"]), reverse=True)]


def _to_rung(runner: Runner, rung: int, number: int, track: Track) -> None:
    begin = time.perf_counter()
    runner.trainer.until(min(rung, runner.spec.steps))
    runner.result = track.valid.measure(runner.trainer.recipe.model)
    runner.rung = number
    runner.seconds += time.perf_counter() - begin


def finish(runner: Runner) -> dict[str, float]:
    """Train the winner to its end and put its best weights back; returns their validation result."""
    begin = time.perf_counter()
    runner.trainer.until(runner.trainer.total)
    restored = runner.validate.restore(runner.trainer.recipe.model)
    runner.result = restored if restored is not None else runner.result
    runner.seconds += time.perf_counter() - begin
    runner.status = "won"
    return runner.result


def _refused(spec: CandidateSpec, reason: str) -> dict[str, Any]:
    return {"name": spec.name, "techniques": [dump_one(t) for t in spec.techniques], "rule": spec.why, "valid": {}, "steps": 0,
            "planned_steps": spec.steps, "seconds": 0.0, "rung": 0, "status": "refused", "reason": reason}  # fmt: skip
