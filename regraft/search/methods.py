"""The methods a search can name, as data: what each is, when to use it, and the scheduler it makes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from regraft.config.spec import Named
from regraft.errors import ConfigError

if TYPE_CHECKING:
    from regraft.search.schedulers import Scheduler
    from regraft.search.space import Space

TRIALS = 32  # of a search that says nothing
WINDOW = 4  # see `SearchSpec.window`
Sampler = Literal["Random", "TPE", "GP"]


class Method(Named):
    """How the next trial is found."""

    family: ClassVar[str] = "method"
    halves: ClassVar[bool] = False  # does it train most trials at a fidelity below 1?
    copies: ClassVar[bool] = False  # does a trial go on from the weights of another?
    window: ClassVar[int | None] = WINDOW  # by default; None: results are told as they arrive

    def shares(self, least: float) -> tuple[float, ...]:
        """The shares of its training at which a trial is looked at, rising to 1; `least` is the lowest that is allowed."""
        return (1.0,)

    def start(self, space: Space, *, shares: tuple[float, ...], trials: int | None, seed: int) -> Scheduler:
        """A scheduler that has asked for nothing yet."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it begins")


class Grid(Method):
    """Every combination of all options and of a few numbers of each range.

    The number of trials is the product over the fields, so it grows by a factor with every field; the command says how many
    trials and steps that makes before it begins.

    Use it when there are two or three fields with a few options each, and every combination is to be seen. Not when a network
    is searched over more: a grid spends most trials on fields that do not matter (Bergstra and Bengio, 2012, JMLR 13).

    Attributes:
        points: numbers tried of each range, at even distances on its scale.

    Example:
        ```yaml
        search:
          method: {Grid: {points: 3}}
          space: {train.optimizer.AdamW.lr: {log: [1.0e-4, 1.0e-2]}, train.batch_size: {choice: [16, 64]}}
        ```
    """

    points: int = Field(default=3, ge=1)
    window: ClassVar[int | None] = None

    def start(self, space: Space, *, shares: tuple[float, ...], trials: int | None, seed: int) -> Scheduler:
        """All points, or the first `trials` of them."""
        from regraft.search.schedulers import Whole

        size = space.grid_size(self.points)
        count = size if trials is None else min(trials, size)
        return Whole(space, seed, shares, count=count, points=space.grid(self.points))


class _Sampled(Method):
    """Every trial is trained to its end, at a point that a sampler draws."""

    family: ClassVar[str] = "method"
    sampler: ClassVar[Sampler] = "Random"

    def start(self, space: Space, *, shares: tuple[float, ...], trials: int | None, seed: int) -> Scheduler:
        """Trials until `trials` were made."""
        from regraft.search.schedulers import Whole

        return Whole(space, seed, shares, self.sampler, count=trials or TRIALS)


class Random(_Sampled):
    """Points drawn independently: `log` ranges uniformly in the logarithm, options with equal chances.

    Bergstra and Bengio, 2012, JMLR 13:281.

    Use it when trials are cheap, or as the baseline of another method. Not when a trial takes minutes: ASHA and TPE find as
    good a point with less.

    Example:
        ```yaml
        search:
          method: Random
          trials: 20
          space: {train.optimizer.AdamW.lr: {log: [1.0e-4, 1.0e-2]}}
        ```
    """

    window: ClassVar[int | None] = None


class TPE(_Sampled):
    """Bayesian optimisation by a tree-structured Parzen estimator: points where good trials are dense and bad ones rare.

    Bergstra et al., 2011, NeurIPS 24; optuna's sampler, multivariate, fields of one option modelled together.

    Use it when there are 20 trials and more, also with choices and fields that only some options have. Not when the first
    few steps already tell good trials from bad: ASHA makes use of that.

    Example:
        ```yaml
        search:
          method: TPE
          trials: 40
          space: {train.optimizer.AdamW.lr: {log: [1.0e-4, 1.0e-2]}}
        ```
    """

    sampler: ClassVar[Sampler] = "TPE"


class GP(_Sampled):
    """Bayesian optimisation by a Gaussian process and the logarithm of expected improvement; optuna's sampler.

    Snoek et al., 2012, arXiv:1206.2944.

    Use it when there are few fields, all numbers, and fewer than about 100 trials. Not when most fields are choices, or exist
    only under some options: those are drawn at random.

    Example:
        ```yaml
        search:
          method: GP
          trials: 25
          space: {train.optimizer.AdamW.lr: {log: [1.0e-4, 1.0e-2]}}
        ```
    """

    sampler: ClassVar[Sampler] = "GP"


class _Halving(Method):
    """Trials are looked at after shares of their training that rise by the factor `eta`."""

    family: ClassVar[str] = "method"
    halves: ClassVar[bool] = True

    eta: int = Field(default=3, ge=2)
    sampler: Sampler = "TPE"

    def shares(self, least: float) -> tuple[float, ...]:
        """1 and its quotients by eta, as far down as `least` allows."""
        levels = math.floor(math.log(1 / least) / math.log(self.eta) + 1e-9)
        if levels < 1:
            raise ConfigError(
                f"search.fidelity: must allow a share of 1/{self.eta} at most, which is the next below 1, got {least:g}"
            )
        return tuple(float(self.eta) ** (i - levels) for i in range(levels + 1))


class ASHA(_Halving):
    """Asynchronous successive halving: a trial goes on when it is among the best 1/eta of those that got as far.

    Li et al., 2020, arXiv:1810.05934. No trial waits for another, and a worker that dies holds up nobody. New trials are drawn
    by TPE from what is known of the others (as in BOHB, Falkner et al., 2018, arXiv:1807.01774); `sampler: Random` is the
    method of the paper.

    Use it when the first part of a training tells something of its end, which is usual: this is the default. Not when good
    settings are slow ones, such as small rates with long schedules: give them a larger least share, or use TPE.

    With several workers the results arrive in another order each time, and so other trials are promoted; `window: 4` makes the
    search the same for up to 4 workers.

    Attributes:
        eta: one of as many trials goes on, for as many times the steps.
        sampler: Random, TPE or GP; who draws new trials.

    Example:
        ```yaml
        search:
          method: {ASHA: {eta: 3}}
          fidelity: {steps: 0.1}
          trials: 30
          space: {train.optimizer.AdamW.lr: {log: [1.0e-4, 1.0e-2]}}
        ```
    """

    window: ClassVar[int | None] = None

    def start(self, space: Space, *, shares: tuple[float, ...], trials: int | None, seed: int) -> Scheduler:
        """Trials until `trials` were begun, and their promotions."""
        from regraft.search.schedulers import Asha

        return Asha(space, seed, shares, self.sampler, count=trials or TRIALS, eta=self.eta)


class Hyperband(_Halving):
    """Successive halving in brackets, from many trials that begin short to few that are trained to the end at once.

    Li et al., 2018, JMLR 18(185). The brackets hedge against settings that show late what they are worth.

    Use it when it is not known how early trials can be told apart. Not when that is known: ASHA spends nothing on the other
    brackets.

    Attributes:
        eta: one of as many trials goes on, for as many times the steps.
        sampler: Random as in the paper, TPE as in BOHB, or GP.

    Example:
        ```yaml
        search:
          method: {Hyperband: {eta: 3}}
          fidelity: {steps: 0.1}
          space: {train.optimizer.AdamW.lr: {log: [1.0e-4, 1.0e-2]}}
        ```
    """

    sampler: Sampler = "Random"

    def start(self, space: Space, *, shares: tuple[float, ...], trials: int | None, seed: int) -> Scheduler:
        """Every bracket once, or brackets until `trials` were begun."""
        from regraft.search.schedulers import Hyperband as Brackets

        return Brackets(space, seed, shares, self.sampler, count=trials, eta=self.eta)


class PBT(Method):
    """Population based training: the worst copy weights and optimizer state of the best, then change their values.

    Jaderberg et al., 2017, arXiv:1711.09846. What comes out is a schedule of values, not one point: `lineage.csv` has who went
    on from whom with which values, and `best.yaml` the values that the best member ended with. `trials` is the size of the
    population.

    Use it when values should change while training goes on, such as rates and regularisation of long trainings. Not when the
    fields decide what the model looks like, or how many steps there are: weights cannot be copied between those.

    Attributes:
        generations: how often the population is looked at, the end included.
        cut: share of the population that is replaced, and that is copied from.
        anew: chance that a value is drawn anew instead of multiplied by 0.8 or 1.2.

    Example:
        ```yaml
        search:
          method: {PBT: {generations: 4}}
          trials: 6
          space: {train.optimizer.AdamW.lr: {log: [1.0e-4, 1.0e-2]}}
        ```
    """

    copies: ClassVar[bool] = True

    generations: int = Field(default=5, ge=2)
    cut: float = Field(default=0.25, gt=0, le=0.5)
    anew: float = Field(default=0.25, ge=0, le=1)

    def shares(self, least: float) -> tuple[float, ...]:
        """Generations of equal length."""
        return tuple((i + 1) / self.generations for i in range(self.generations))

    def start(self, space: Space, *, shares: tuple[float, ...], trials: int | None, seed: int) -> Scheduler:
        """A population of `trials`."""
        from regraft.search.schedulers import Population

        return Population(space, seed, shares, count=trials or 8, cut=self.cut, anew=self.anew)
