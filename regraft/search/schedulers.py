"""Which leg comes next: pure functions of the results told so far, so that a search is repeated by replaying its journal.

A scheduler is asked for legs and told outcomes, and holds nothing else. `ask` gives None where it needs more outcomes first, or
where the search is over.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from regraft.search.legs import Leg
from regraft.search.samplers import STARTUP, Kind, Past, suggest
from regraft.search.space import Choice, Drawn, Range, Space


@dataclass
class Trial:
    """What is known of a trial: its point, and by level the leg that reached it and its worth (None: it failed)."""

    number: int
    drawn: Drawn
    bracket: int = 0
    legs: dict[int, int] = field(default_factory=dict)
    worth: dict[int, float | None] = field(default_factory=dict)


class Scheduler(Protocol):
    """Asked and told."""

    def ask(self) -> Leg | None:
        """The next leg."""
        ...

    def tell(self, leg: Leg, worth: float | None, /) -> None:
        """What a leg came to, higher is better; None: it failed."""
        ...


@dataclass
class Ledger:
    """What all schedulers keep: trials, and legs counted in the order they were asked for."""

    space: Space
    seed: int
    shares: tuple[float, ...]  # rising, the last is 1
    sampler: Kind = "Random"
    trials: list[Trial] = field(default_factory=list)
    asked: int = 0

    @property
    def top(self) -> int:
        """The highest level."""
        return len(self.shares) - 1

    def fresh(self, *, level: int = 0, bracket: int = 0, drawn: Drawn | None = None) -> Leg:
        """The first leg of a new trial."""
        number = len(self.trials)
        if drawn is None:
            past = self.comparable() if self.sampler == "GP" else self.past()
            drawn = suggest(self.sampler, self.space, seed=self.seed, number=number, past=past)
        self.trials.append(Trial(number, drawn, bracket))
        return self.leg(self.trials[-1], level)

    def leg(self, trial: Trial, level: int, *, after: Leg | None = None) -> Leg:
        """The next leg of a trial, by default on from its highest level."""
        before = max(trial.legs, default=None)
        made = Leg(
            number=self.asked,
            trial=trial.number,
            level=level,
            share=self.shares[level],
            drawn=dict(trial.drawn),
            after=after.number if after else None if before is None else trial.legs[before],
            source=after.trial if after else None if before is None else trial.number,
            bracket=trial.bracket,
        )
        trial.legs[level] = made.number
        self.asked += 1
        return made

    def tell(self, leg: Leg, worth: float | None, /) -> None:
        """Note what a leg came to."""
        self.trials[leg.trial].worth[leg.level] = worth

    def past(self) -> list[Past]:
        """Every trial with a result, in the order of trials."""
        found: list[Past] = []
        for trial in self.trials:
            known = {level: worth for level, worth in trial.worth.items() if worth is not None}
            if known:
                level = max(known)
                found.append(Past(trial.drawn, known[level], level, level == self.top))
        return found

    def comparable(self) -> list[Past]:
        """The trials with a result at the highest level that enough of them have for a model, as if it were the last one."""
        found: dict[int, list[Past]] = {}
        for trial in self.trials:
            for level, worth in trial.worth.items():
                if worth is not None:
                    found.setdefault(level, []).append(Past(trial.drawn, worth, level, True))
        enough = [level for level, past in found.items() if len(past) >= STARTUP]
        return found[max(enough)] if enough else []

    def best(self, among: Sequence[Trial], level: int, count: int) -> list[Trial]:
        """The `count` best of trials at a level, those that failed left out; of equal ones the earlier."""
        fine = [trial for trial in among if trial.worth.get(level) is not None]
        return sorted(fine, key=lambda trial: (-float(trial.worth[level] or 0.0), trial.number))[:count]


# ---- every trial to its end


@dataclass
class Whole(Ledger):
    """Every trial is trained to its end: random search, TPE, a Gaussian process, or the points of a grid."""

    count: int = 32
    points: Iterator[Drawn] | None = None

    def ask(self) -> Leg | None:
        """The next trial."""
        if len(self.trials) >= self.count:
            return None
        drawn = None if self.points is None else next(self.points, None)
        return None if self.points is not None and drawn is None else self.fresh(drawn=drawn)


# ---- asynchronous successive halving


@dataclass
class Asha(Ledger):
    """Whenever a worker is free, the best trial among the top 1/eta of a rung goes on; if there is none, a new one begins.

    Li et al., 2020, arXiv:1810.05934, algorithm 2.
    """

    count: int = 32
    eta: int = 3
    promoted: set[tuple[int, int]] = field(default_factory=set)  # (trial, level it was promoted from)

    def ask(self) -> Leg | None:
        """A promotion, else a new trial."""
        for level in reversed(range(self.top)):
            there = [trial for trial in self.trials if level in trial.worth]
            for trial in self.best(there, level, len(there) // self.eta):
                if (trial.number, level) not in self.promoted:
                    self.promoted.add((trial.number, level))
                    return self.leg(trial, level + 1)
        return self.fresh() if len(self.trials) < self.count else None


# ---- Hyperband


def brackets(resource: float, eta: int) -> list[list[tuple[int, float]]]:
    """For each bracket, the most exploring one first, its rungs as (trials, resource of each).

    Li et al., 2018, JMLR 18(185), algorithm 1: `resource` is R, the most that one trial may have, in units of the least.
    """
    highest = math.floor(math.log(resource) / math.log(eta) + 1e-9)
    made: list[list[tuple[int, float]]] = []
    for s in range(highest, -1, -1):
        count = math.ceil((highest + 1) / (s + 1) * eta**s - 1e-9)
        made.append([(count // eta**i, resource * float(eta) ** (i - s)) for i in range(s + 1)])
    return made


@dataclass
class Bracket:
    """One run of successive halving: trials that begin at a level, and how many go on from each."""

    first: int  # level
    counts: list[int]  # trials at each rung
    members: list[Trial] = field(default_factory=list)  # of the rung under way
    rung: int = 0
    begun: int = 0  # of these

    @property
    def level(self) -> int:
        """Of the rung under way."""
        return self.first + self.rung


@dataclass
class Hyperband(Ledger):
    """Brackets of successive halving from many short trials to few long ones, again from the first while trials are left.

    A rung is over when all of its trials are; meanwhile the next bracket begins, so that no worker waits.
    """

    count: int | None = None  # None: every bracket once
    eta: int = 3
    open: list[Bracket] = field(default_factory=list)
    made: int = 0

    def ask(self) -> Leg | None:
        """The next leg of the earliest bracket that has one, else the first of the next bracket."""
        for number, bracket in enumerate(self.open):
            leg = self._next(bracket, number)
            if leg is not None:
                return leg
        if self.made > self.top and self.count is None:
            return None
        if self.count is not None and len(self.trials) >= self.count:
            return None
        plan = brackets(float(self.eta**self.top), self.eta)[self.made % (self.top + 1)]
        self.open.append(Bracket(self.top - len(plan) + 1, [count for count, _ in plan]))
        self.made += 1
        return self._next(self.open[-1], len(self.open) - 1)

    def _next(self, bracket: Bracket, number: int) -> Leg | None:
        if (
            bracket.rung == 0
            and bracket.begun < bracket.counts[0]
            and (self.count is None or len(self.trials) < self.count)
        ):
            bracket.begun += 1
            leg = self.fresh(level=bracket.first, bracket=number)
            bracket.members.append(self.trials[leg.trial])
            return leg
        if bracket.rung > 0 and bracket.begun < len(bracket.members):
            bracket.begun += 1
            return self.leg(bracket.members[bracket.begun - 1], bracket.level)
        waits = any(bracket.level not in trial.worth for trial in bracket.members)
        if waits or bracket.rung + 1 == len(bracket.counts) or not bracket.members:
            return None
        share = len(bracket.members) / bracket.counts[bracket.rung]  # below 1 where trials had run out
        going = max(1, math.floor(bracket.counts[bracket.rung + 1] * min(1.0, share)))
        bracket.members = self.best(bracket.members, bracket.level, going)
        bracket.rung, bracket.begun = bracket.rung + 1, 0
        return self._next(bracket, number)


# ---- population based training


@dataclass
class Population(Ledger):
    """A population trains in generations; after each the worst take over weights and state of the best, and change their values.

    Jaderberg et al., 2017, arXiv:1711.09846: truncation selection, then perturbation. Generations are synchronous, so that who
    copies whom does not depend on which worker was quick.
    """

    count: int = 8
    cut: float = 0.25  # share of the population that copies, and that is copied from
    factors: tuple[float, float] = (0.8, 1.2)
    anew: float = 0.25  # chance that a value is drawn anew rather than perturbed
    generation: int = 0
    begun: int = 0
    parents: dict[int, int] = field(default_factory=dict)  # trial -> trial it goes on from, in this generation
    ends: dict[int, Leg] = field(default_factory=dict)  # trial -> its leg of the last generation
    waiting: dict[int, Leg] = field(default_factory=dict)  # and of the one under way

    def ask(self) -> Leg | None:
        """The next member of the generation under way."""
        if self.generation == 0 and self.begun < self.count:
            self.begun += 1
            return self.fresh()
        if self.begun < len(self.trials):
            trial = self.trials[self.begun]
            self.begun += 1
            return self.leg(trial, self.generation, after=self.ends[self.parents[trial.number]])
        level = self.generation
        if level == self.top or any(level not in trial.worth for trial in self.trials):
            return None
        if not self.best(self.trials, level, 1):
            return None  # all have failed
        self._select()
        return self.ask()

    def tell(self, leg: Leg, worth: float | None, /) -> None:
        """Note what a member came to."""
        super().tell(leg, worth)
        self.waiting[leg.trial] = leg

    def _select(self) -> None:
        """Begin the next generation: who goes on from whom, and with which values."""
        level = self.generation
        ranked = self.best(self.trials, level, len(self.trials))
        failed = [trial for trial in self.trials if trial not in ranked]
        cut = min(max(1, round(self.cut * len(self.trials))), len(self.trials) // 2)
        top = ranked[: max(1, cut)]
        worst = [*failed, *ranked[::-1]][: max(cut, len(failed))]
        losers = {trial.number for trial in worst if trial not in top}
        self.ends, self.parents = dict(self.waiting), {}
        for trial in self.trials:
            self.parents[trial.number] = trial.number
            if trial.number in losers:
                rng = random.Random(f"{self.seed}/{level}/{trial.number}")
                parent = rng.choice(top)
                self.parents[trial.number] = parent.number
                trial.drawn = explored(self.space, parent.drawn, rng, self.factors, self.anew)
        self.generation, self.begun, self.waiting = level + 1, 0, {}


def explored(
    space: Space, drawn: Mapping[str, Any], rng: random.Random, factors: tuple[float, float], anew: float
) -> Drawn:
    """A point near another: each number multiplied by one of the factors, each option moved to a neighbour, or drawn anew."""
    return space.draw(Explorer(drawn, rng, factors, anew))


@dataclass(frozen=True)
class Explorer:
    """Picks near what was drawn; a domain that it has no value of is drawn at random."""

    drawn: Mapping[str, Any]
    rng: random.Random
    factors: tuple[float, float]
    anew: float

    def number(self, name: str, domain: Range, /) -> float | int:
        """The value times a factor, within the range; a whole number changes by one at least."""
        if name not in self.drawn or self.rng.random() < self.anew:
            return domain.value(self.rng.random())
        factor = self.rng.choice(self.factors)
        changed = domain.within(self.drawn[name] * factor)
        if domain.whole and changed == self.drawn[name]:
            changed = domain.within(changed + (1 if factor > 1 else -1))
        return changed

    def option(self, name: str, domain: Choice, /) -> int:
        """The option before or after."""
        last = len(domain.options) - 1
        if name not in self.drawn or self.rng.random() < self.anew:
            return self.rng.randint(0, last)
        return min(max(int(self.drawn[name]) + self.rng.choice((-1, 1)), 0), last)
