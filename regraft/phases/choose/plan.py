"""From a time budget to counted work: how long a step and a forward pass take here is measured once, then only steps count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from regraft.config.recipe import CandidateSpec, RaceSpec
from regraft.errors import BudgetError
from regraft.phases.choose.race import field_sizes
from regraft.phases.choose.rules import PARTLY_FROZEN, RELATIVE_COST, Facts, candidate, order

RACE_SHARES = 0.15, 0.5  # of the time left for adapting; above the first only what the longest training has no use for
MOST_EPOCHS = {"text": 5.0, "image": 30.0, "table": 60.0}
FEWEST_STEPS = 20  # a rung shorter than this measures noise
LONGER = 3  # the second rung over the first


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

    racing = _for_the_race(seconds, most * max(speed.of(name) for name, _ in names)) if len(names) > 1 else 0.0
    wanted = [(name, why, steps(name, seconds - racing)) for name, why in names]
    fewest = max(FEWEST_STEPS, per_epoch // 4)
    affordable = [entry for entry in wanted if entry[2] >= fewest]
    if not affordable:
        if only:
            raise BudgetError(
                f"--budget: {only} needs at least {fewest} steps of {speed.step_s:.2f} s, and "
                f"{max(seconds, 0):.0f} s are left for them; give a larger budget or --strategy probe"
            )
        return RaceSpec(candidates=(probe,)), [
            f"{max(seconds, 0):.0f} s are too few to train anything ({speed.step_s * 1e3:.0f} ms a step), so the probe stands"
        ]
    entries, rungs = _field(affordable, speed, racing) if len(affordable) > 1 else (affordable, ())
    left = seconds - _cost([speed.of(name) for name, _, _ in entries], rungs) - _filling(entries, facts, speed)
    if min(steps(name, left) for name, _, _ in entries) < fewest:
        entries, rungs, left = affordable[:1], (), seconds
    entries = [(name, why, steps(name, left)) for name, why, _ in entries]
    made = [candidate(name, facts, steps=count, why=why) for name, why, count in entries]
    sentences = [entries[0][1]] if entries[0][1] else []
    sentences.append(
        f"{seconds:.0f} s for training at {speed.step_s * 1e3:.0f} ms a full step: " + _listed(made, per_epoch)
    )
    if rungs:
        sentences.append(f"rungs of {' and '.join(f'{r:,}' for r in rungs)} steps; after each the better half goes on")
    return RaceSpec(candidates=(probe, *made), rungs=tuple(rungs)), sentences


Entry = tuple[str, str, int]  # strategy, why, steps


def _for_the_race(seconds: float, longest: float) -> float:
    """Seconds of the race: what is left beside the longest training, within bounds."""
    least, most = (share * seconds for share in RACE_SHARES)
    return min(max(seconds - longest, least), most)


def _field(entries: list[Entry], speed: Speed, seconds: float) -> tuple[list[Entry], tuple[int, ...]]:
    """As many candidates, in the order of the rules, as can make rungs worth measuring in `seconds`; rungs as long as fit."""
    longest = max(steps for _, _, steps in entries)
    shortest = max(FEWEST_STEPS, longest // 16)
    field = entries[:2]
    for entry in entries[2:]:
        if _cost([speed.of(name) for name, _, _ in [*field, entry]], _rungs(shortest, len(field) + 1)) > seconds:
            break
        field.append(entry)
    unit = _cost([speed.of(name) for name, _, _ in field], _rungs(1, len(field)))
    first = max(shortest, min(int(seconds / unit), longest // 4))
    return field, _rungs(first, len(field))


def _rungs(first: int, candidates: int) -> tuple[int, ...]:
    return (first, LONGER * first) if candidates > 2 else (first,)


def _cost(costs: Sequence[float], rungs: Sequence[int]) -> float:
    """Seconds of a race at most, of the seconds of a step of each candidate: the dearest go on."""
    dearest, sizes = sorted(costs, reverse=True), field_sizes(len(costs), len(rungs))
    return sum(rung * sum(dearest[:size]) for rung, size in zip(rungs, sizes, strict=False))


def _filling(entries: list[Entry], facts: Facts, speed: Speed) -> float:
    """Seconds in which stores of what is frozen are filled; with random augmentation there are none."""
    stored = facts.modality == "text" and any(name in PARTLY_FROZEN for name, _, _ in entries)
    return speed.forward_s * facts.rows if stored else 0.0


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
