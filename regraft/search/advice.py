"""What a search will cost, said before it begins, and what would cost less."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from regraft.config.search import SearchSpec
from regraft.search.methods import PBT, TRIALS, Grid, Hyperband
from regraft.search.schedulers import brackets
from regraft.search.space import Space

MANY = 27  # points of a grid above which the advice is given: three fields of three


@dataclass(frozen=True)
class Estimate:
    """What a search is expected to come to."""

    trials: int
    legs: int
    steps: float  # of all trials
    sentence: str


def estimate(spec: SearchSpec, space: Space, shares: tuple[float, ...], steps: int) -> Estimate:
    """Trials, legs and steps of a search whose trials have `steps` steps at full training."""
    method = spec.method
    fields = f"{len(space.domains)} field" + "s" * (len(space.domains) != 1)
    if isinstance(method, Grid):
        size = space.grid_size(method.points)
        trials = size if spec.trials is None else min(size, spec.trials)
        legs, share = trials, float(trials)
    elif isinstance(method, PBT):
        trials = spec.trials or 8
        legs, share = trials * method.generations, float(trials)
    elif isinstance(method, Hyperband):
        plan = brackets(float(method.eta ** (len(shares) - 1)), method.eta)
        once = sum(rungs[0][0] for rungs in plan)
        trials = spec.trials or once
        legs = round(sum(count for rungs in plan for count, _ in rungs) * trials / once)
        most = method.eta ** (len(shares) - 1)
        share = sum(
            count * (r - (r / method.eta if i else 0)) / most for rungs in plan for i, (count, r) in enumerate(rungs)
        )
        share *= trials / once
    else:
        trials = spec.trials or TRIALS
        eta = getattr(method, "eta", 1)
        counts = [trials // eta**level for level in range(len(shares))]
        legs = sum(counts)
        share = sum(n * (s - (shares[i - 1] if i else 0)) for i, (n, s) in enumerate(zip(counts, shares, strict=True)))
    sentence = f"{type(method).__name__} over {fields}: {trials:,} trials, about {share * steps:,.0f} steps in all"
    return Estimate(trials, legs, share * steps, sentence)


def before(spec: SearchSpec, space: Space, cost: Estimate) -> Iterator[str]:
    """Advice on the method, where there is any."""
    if isinstance(spec.method, Grid) and cost.trials > MANY:
        each = cost.steps / cost.trials
        yield (
            f"warning: GRID1, search.method: a grid of {len(space.domains)} fields is {cost.trials:,} trials and "
            f"{cost.steps:,.0f} steps, and grows by a factor with every field, most of it along fields that do not matter "
            f"(Bergstra and Bengio, 2012, JMLR 13); ASHA with 64 trials takes about {each * asha(64):,.0f} steps and TPE with "
            f"32 trials {each * 32:,.0f}: write `method: ASHA` or `method: TPE`"
        )


def asha(trials: int, *, eta: int = 3, levels: int = 4) -> float:
    """Full trainings that ASHA's default spends on so many trials."""
    shares = [float(eta) ** (i - levels + 1) for i in range(levels)]
    return sum((trials // eta**i) * (s - (shares[i - 1] if i else 0)) for i, s in enumerate(shares))
