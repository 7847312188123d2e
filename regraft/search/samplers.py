"""Points of a space drawn by optuna: at random, by a tree-structured Parzen estimator (TPE), or by a Gaussian process.

A draw is a function of (seed, number of the trial, results known): nothing is kept from one to the next, so a search that goes on
after a kill draws what it would have drawn.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from regraft.search.space import Choice, Drawn, Given, Range, Space

Kind = Literal["Random", "TPE", "GP"]
STARTUP = 10  # trials that are drawn at random before a model is fitted to them


@dataclass(frozen=True)
class Past:
    """What is known of a trial: its point, and its worth at the highest level it has reached."""

    drawn: Mapping[str, Any]
    worth: float
    level: int
    whole: bool  # is that level the top one?


@dataclass(frozen=True)
class Asking:
    """Picks by an optuna trial."""

    trial: optuna.Trial

    def number(self, name: str, domain: Range, /) -> float | int:
        """A number of a range."""
        if domain.whole:
            return self.trial.suggest_int(name, int(domain.low), int(domain.high), log=domain.log)
        return self.trial.suggest_float(name, domain.low, domain.high, log=domain.log)

    def option(self, name: str, domain: Choice, /) -> int:
        """The index of an option."""
        return int(self.trial.suggest_categorical(name, range(len(domain.options))))


def suggest(kind: Kind, space: Space, *, seed: int, number: int, past: Sequence[Past], startup: int = STARTUP) -> Drawn:
    """The point of trial `number`.

    Args:
        kind: of the sampler.
        space: to draw from.
        seed: of the search.
        number: of the trial.
        past: what is known, in the order of trials.
        startup: trials that are drawn at random before a model is fitted to them.
    """
    with quiet():
        known = () if kind == "Random" else past
        study = study_of(space, known, sampler=_sampler(kind, seed_of(seed, number), startup))
        return space.draw(Asking(study.ask()))


def study_of(space: Space, past: Sequence[Past], sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
    """An optuna study in memory that holds these trials; those that were not trained to the end are pruned ones."""
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials([_frozen(space, each) for each in past])
    return study


def seed_of(*parts: object) -> int:
    """32 bits that stand for the parts."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big")


@contextmanager
def quiet() -> Generator[None]:
    """Without optuna's lines about studies made, and its warnings about options that may still change."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _sampler(kind: Kind, seed: int, startup: int) -> optuna.samplers.BaseSampler:
    if kind == "Random":
        return optuna.samplers.RandomSampler(seed=seed)
    if kind == "GP":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=startup, multivariate=True, group=True, warn_independent_sampling=False
    )


def _frozen(space: Space, past: Past) -> FrozenTrial:
    """A trial as optuna keeps it."""
    recorded = space.recorded(Given(past.drawn))
    distributions = {name: _distribution(domain) for name, domain in recorded.domains.items()}
    worth = max(min(past.worth, 1e30), -1e30) if math.isfinite(past.worth) else -1e30
    return create_trial(
        state=TrialState.COMPLETE if past.whole else TrialState.PRUNED,
        value=worth if past.whole else None,
        params=dict(recorded.drawn),
        distributions=distributions,
        intermediate_values={past.level: worth},
    )


def _distribution(domain: Range | Choice) -> BaseDistribution:
    if isinstance(domain, Choice):
        return CategoricalDistribution(range(len(domain.options)))
    if domain.whole:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)
