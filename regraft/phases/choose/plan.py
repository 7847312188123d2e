"""From a time budget to counted work: how long a step and a forward pass take here is measured once, then only steps count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from regraft.config.recipe import CandidateSpec, RaceSpec
from regraft.errors import BudgetError
from regraft.phases.choose.rules import RELATIVE_COST, Facts, candidate, order

RACE_SHARE = 0.3  # of the time left for adapting, at most, goes to candidates that do not win
MOST_EPOCHS = {"text": 5.0, "image": 30.0, "table": 60.0}
FEWEST_STEPS = 20  # a rung shorter than this measures noise


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Measured on this machine, on the model's own shapes."""

    forward_s: float  # seconds a row of the forward pass
    step_s: float  # seconds of a full training step
    batch_size: int

    def of(self, strategy: str) -> float:
        """Seconds of a step of a strategy."""
        return self.step_s * RELATIVE_COST.get(strategy, 1.0)


def make_race(facts: Facts, speed: Speed, *, seconds: float, only: str | None = None) -> tuple[RaceSpec, list[str]]:
    """The race that fits into `seconds`: candidates, their steps, and the rungs; and the sentences that say why.

    Args:
        facts: what the rules look at.
        speed: measured seconds of a step.
        seconds: left for training, the race included.
        only: a strategy that is taken without a race.

    Raises:
        BudgetError: a strategy was asked for that the budget has no time for.
    """
    probe = candidate("probe", facts, steps=0, why="")
    if only == "probe":
        return RaceSpec(candidates=(probe,)), ["strategy probe: asked for, no race"]
    names = [(only, "asked for")] if only else order(facts)
    per_epoch = math.ceil(facts.rows / speed.batch_size)
    most = math.ceil(MOST_EPOCHS[facts.modality] * per_epoch)

    def steps(name: str, seconds: float) -> int:
        return min(most, int(seconds / speed.of(name)))

    share = 1.0 if len(names) == 1 else 1.0 - RACE_SHARE
    wanted = [(name, why, steps(name, share * seconds)) for name, why in names]
    affordable = [entry for entry in wanted if entry[2] >= max(FEWEST_STEPS, per_epoch // 4)]
    if not affordable:
        if only:
            raise BudgetError(
                f"--budget: {only} needs at least {max(FEWEST_STEPS, per_epoch // 4)} steps of {speed.step_s:.2f} s, and "
                f"{max(seconds, 0):.0f} s are left for them; give a larger budget or --strategy probe"
            )
        return RaceSpec(candidates=(probe,)), [
            f"{max(seconds, 0):.0f} s are too few to train anything ({speed.step_s * 1e3:.0f} ms a step), so the probe stands"
        ]
    if len(affordable) == 1:
        entries, rungs = affordable, ()
    else:
        entries, rungs = _field(affordable, speed, RACE_SHARE * seconds)
        left = seconds - _lost([name for name, _, _ in entries], rungs, speed)  # mostly more than was set aside
        entries = [(name, why, steps(name, left)) for name, why, _ in entries]
    made = [candidate(name, facts, steps=count, why=why) for name, why, count in entries]
    sentences = [entries[0][1]] if entries[0][1] else []
    sentences.append(
        f"{seconds:.0f} s for training at {speed.step_s * 1e3:.0f} ms a full step: " + _listed(made, per_epoch)
    )
    if rungs:
        sentences.append(f"rungs at {' and '.join(f'{r:,}' for r in rungs)} steps; after each the better half goes on")
    return RaceSpec(candidates=(probe, *made), rungs=tuple(rungs)), sentences


Entry = tuple[str, str, int]  # strategy, why, steps


def _field(entries: list[Entry], speed: Speed, seconds: float) -> tuple[list[Entry], tuple[int, ...]]:
    """As many candidates, in the order of the rules, as can make a first rung worth measuring in `seconds`."""
    longest = max(steps for _, _, steps in entries)
    first = max(FEWEST_STEPS, longest // 16)
    field: list[Entry] = []
    spent = 0.0
    for entry in entries:
        spent += min(first, entry[2]) * speed.of(entry[0])
        if len(field) >= 2 and spent > seconds * 0.6:
            break
        field.append(entry)
    second = min(3 * first, longest)
    return field, (first, second) if len(field) > 2 and second > first else (first,)


def _lost(names: Sequence[str], rungs: Sequence[int], speed: Speed) -> float:
    """Seconds that go at most to candidates that do not win: the cheapest of those still running is taken for the winner."""
    costs = sorted((speed.of(name) for name in names), reverse=True)
    alive, before, seconds = len(costs), 0, 0.0
    for rung in rungs:
        seconds += (rung - before) * sum(costs[: alive - 1])
        alive, before = max(1, alive // 2), rung
    return seconds


def _listed(candidates: Sequence[CandidateSpec], per_epoch: int) -> str:
    return ", ".join(f"{c.name} {c.steps:,} steps ({c.steps / per_epoch:.1f} epochs)" for c in candidates)


def parse_budget(text: str | float) -> float:
    """Seconds of "90", "90s", "3m", "1.5h" or a number.

    Raises:
        BudgetError: not a positive amount of time.
    """
    if isinstance(text, int | float):
        seconds = float(text)
    else:
        number, unit = (text[:-1], text[-1]) if text[-1:] in "smh" and text[-1:] else (text, "s")
        try:
            seconds = float(number) * {"s": 1, "m": 60, "h": 3600}[unit]
        except ValueError:
            raise BudgetError(f"--budget: write an amount of time such as 90s, 3m or 1h, got {text!r}") from None
    if not 0 < seconds < math.inf:
        raise BudgetError(f"--budget: must be a positive amount of time, got {text!r}")
    return seconds
