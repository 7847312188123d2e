"""`regraft search`: from a recipe with `search:` to the best recipe, in a folder that a killed search is gone on with from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from regraft.config.recipe import MAIN, RecipeSpec, dump_recipe, read_recipe
from regraft.config.search import FidelitySpec, SearchSpec
from regraft.core.files import clean, replace_file
from regraft.core.stopping import Interrupted, Stop, listening
from regraft.errors import ConfigError, RunError
from regraft.parallel.processes import Processes
from regraft.phases.judges import judge_for
from regraft.phases.progress import Reporter, Silent
from regraft.phases.ranks import require_one_process
from regraft.phases.report.words import seconds
from regraft.phases.rundir import RECIPE
from regraft.phases.working import disk_trouble, locked
from regraft.search.advice import Estimate, before, estimate
from regraft.search.engine import Engine
from regraft.search.journal import JOURNAL, Journal
from regraft.search.legs import COMPLETE, Leg, Outcome
from regraft.search.methods import ASHA, TRIALS, Method
from regraft.search.page import write_page
from regraft.search.results import (
    FORMAT,
    Ended,
    best_of,
    correlations,
    ended,
    importance,
    lineage_csv,
    pareto,
    trials_csv,
    trials_of,
)  # fmt: skip
from regraft.search.trial import Workplace, plain_tree, run_leg
from regraft.search.workers import Here, Workers

TARGET = "regraft.search.trial:run_leg"
LEAST = 1 / 9  # of the steps, for a method that halves and a recipe that names no fidelity
STATEFUL = ("train.batch_size", "train.optimizer", "train.schedule")  # whose state is copied, or counted by, as a whole
BEST, RESULT, TABLE, LINEAGE, PAGE = "best.yaml", "search.json", "trials.csv", "lineage.csv", "search.html"


def search(
    spec: RecipeSpec,
    out: Path,
    *,
    workers: int = 1,
    budget: float | None = None,
    resume: bool = False,
    ray: str | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """What came out of a search, as it stands in search.json: `best`, `trials`, `fidelities`, `importance`, `pareto`, `cost`.

    The folder gets best.yaml (a recipe for `regraft train`), trials.csv, search.html, and lineage.csv where trials copy others.

    Args:
        spec: a recipe with stages and a section `search:`.
        out: a new or empty folder; with `resume`, the one of a search that was stopped or killed.
        workers: processes that train trials at once; 1 is this process.
        budget: seconds after which no more trials are begun.
        resume: go on from what the folder holds.
        ray: address of a Ray cluster whose nodes share the folder; `workers` are then its tasks.
        reporter: told what is going on.

    Raises:
        RegraftError: the recipe cannot be searched, or no trial could be trained.
        Interrupted: SIGTERM or SIGINT came; the search can be resumed.
    """
    told = reporter or Silent()
    require_one_process(spec, "a search shares out its trials, see `--workers`")
    spec = with_fidelity(spec)
    place = Workplace(spec)
    require_searchable(place)
    _open(spec, out, resume)
    with ExitStack() as stack:
        stack.enter_context(locked(out))
        stop = stack.enter_context(listening())
        clean(out)
        if not resume and (out / RECIPE).exists():
            raise RunError(f"{out}: another process has begun a search there; give another --out")
        cost = _first_look(place, told)
        replace_file(out / RECIPE, dump_recipe(spec).encode())
        running = Running(place, out, told, stop, cost)
        try:
            over = running.work(_workers(stack, workers, ray, out, stop), budget)
        except OSError as error:
            reason = disk_trouble(error)
            if reason is None:
                raise
            raise RunError(f"{out}: the disk failed ({reason}); put that right there and resume") from error
        if stop.requested is not None:
            raise Interrupted(stop.requested)
        return running.finish(over)


def resume_search(out: Path, *, workers: int = 1, reporter: Reporter | None = None) -> dict[str, Any]:
    """Go on with a search that was stopped or killed; see `search`.

    Raises:
        RunError: there is no search at `out`.
    """
    if not is_search(out):
        raise RunError(f"{out}: holds no search to go on with; give the folder that --out named")
    return search(read_recipe(out / RECIPE), out, workers=workers, resume=True, reporter=reporter)


def is_search(out: Path) -> bool:
    """Does the folder hold a search that was begun?"""
    return (out / JOURNAL).is_file() and (out / RECIPE).is_file()


# ---- what can be searched


def section(spec: RecipeSpec) -> SearchSpec:
    """The section `search:` of a recipe.

    Raises:
        ConfigError: it has none.
    """
    if spec.search is None:
        raise ConfigError(
            "search: the recipe must have a section `search:` with a `space:` that names fields and their domains, such as "
            "{train.optimizer.AdamW.lr: {log: [1.0e-5, 1.0e-2]}}, and has none"
        )
    return spec.search


def method_of(spec: SearchSpec) -> Method:
    """The method of a search."""
    return cast(Method, spec.method)


def with_fidelity(spec: RecipeSpec) -> RecipeSpec:
    """The recipe with the fidelity written out that its method uses where none is named."""
    found = section(spec)
    if found.fidelity is not None or not method_of(found).halves:
        return spec
    return spec.replaced(search=found.replaced(fidelity=FidelitySpec(steps=LEAST)))


def shares_of(spec: SearchSpec) -> tuple[float, ...]:
    """The shares of its training at which a trial is looked at; of ASHA no more than one trial of all is left for the last."""
    method = method_of(spec)
    shares = method.shares(spec.fidelity.least if spec.fidelity is not None else 1.0)
    if isinstance(method, ASHA):
        levels = math.floor(math.log(spec.trials or TRIALS) / math.log(method.eta) + 1e-9)
        shares = shares[-1 - levels :]
    return shares


def require_searchable(place: Workplace) -> None:
    """Every field of the space is one of the recipe, every option is valid, and the method can be used on them.

    Raises:
        ConfigError: not so.
    """
    found, method = place.search, method_of(place.search)
    name = type(method).__name__
    if found.fidelity is not None and not method.halves:
        raise ConfigError(
            f"search.fidelity: belongs to ASHA and Hyperband, which train most trials in part; {name} has no use for it, so "
            "leave it out"
        )
    shares_of(found)
    for drawn in place.space.covering():
        place.space.recipe(place.tree, drawn)
    if method.copies:
        fixed = [path for path in place.space.domains if path.split(".")[0] != "train" or path in STATEFUL]
        fixed += [name for name in place.space.names() if "[" in name]
        if fixed:
            raise ConfigError(
                f"search.space.{fixed[0]}: PBT changes values while weights are kept, so it searches over numbers and plain "
                "options under train.optimizer and the like; take ASHA for the other fields"
            )


def _first_look(place: Workplace, told: Reporter) -> Estimate:
    """The data opened and the first recipe judged before anything is written; what the search will cost is said.

    Raises:
        ConfigError: there are no validation rows, or the recipe cannot be trained.
    """
    spec = place.space.recipe(place.tree, next(place.space.covering()))
    main = place.ground(spec).entries[MAIN]
    if judge_for(spec.techniques, main, "valid") is None:
        raise ConfigError(
            "search: trials are compared on labelled validation rows, and this recipe has none that its model could be judged "
            "on; set data.main.valid to a share such as 0.1"
        )
    cost = estimate(place.search, place.space, shares_of(place.search), sum(stage.steps for stage in spec.stages))
    told.phase("search", cost.sentence)
    for sentence in before(place.search, place.space, cost):
        told.say(sentence)
    return cost


def _open(spec: RecipeSpec, out: Path, resume: bool) -> None:
    """The folder of the search, new or the one it was begun in.

    Raises:
        RunError: it holds something else.
    """
    if resume:
        if not is_search(out):
            raise RunError(f"{out}: holds no search to go on with; leave --resume out to begin one there")
        if _comparable(read_recipe(out / RECIPE)) != _comparable(spec):
            raise RunError(f"{out}: was begun with another recipe; resume with {out / RECIPE}, or give another --out")
        return
    if is_search(out):
        raise RunError(f"{out}: holds a search already; go on with it by --resume, or give another --out")
    if out.exists() and (not out.is_dir() or any(each.name != ".lock" for each in out.iterdir())):
        raise RunError(f"{out}: must be a new or empty folder for a search, and holds other files; give another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out}: the folder cannot be made ({error.strerror}); give another --out") from None


def _comparable(spec: RecipeSpec) -> str:
    """The recipe without the number of trials, of which there may be more on a resume."""
    return dump_recipe(spec.replaced(search=section(spec).replaced(trials=None)))


def _workers(stack: ExitStack, count: int, ray: str | None, out: Path, stop: Stop) -> Workers:
    if count < 1:
        raise ConfigError(f"--workers: must be 1 or more, got {count}")
    if ray is not None:
        from regraft.integrations.ray import RayWorkers

        made: Workers = RayWorkers(ray, count, TARGET)
    elif count == 1:
        made = Here(lambda work: run_leg(work, stop))
    else:
        made = Processes(count, TARGET, log=out / "workers.log")
    stack.callback(made.close)
    return made


# ---- the search


@dataclass
class Running:
    """A search under way, and what is made of it."""

    place: Workplace
    out: Path
    told: Reporter
    stop: Stop
    cost: Estimate
    workers: int = 1
    engine: Engine | None = None

    def work(self, workers: Workers, budget: float | None) -> bool:
        """Train trials; whether the search is over."""
        found, space = self.place.search, self.place.space
        method = method_of(found)
        window, self.workers = found.window or method.window, workers.count
        if window is not None and workers.count > window:
            self.told.say(
                f"{workers.count} workers, of which {window} can be at work at once: results are told in the order of trials; "
                f"set search.window to {workers.count} for more"
            )
        shares = shares_of(found)
        scheduler = method.start(space, shares=shares, trials=found.trials, seed=found.seed)
        self.engine = Engine(scheduler, Journal(self.out / JOURNAL), found.metric, window)
        self.told.begin("search", self.cost.legs, "legs")
        try:
            return self.engine.run(
                workers,
                lambda leg: {"out": str(self.out.resolve()), "leg": leg.to_json()},
                seconds=budget,
                stopping=lambda: self.stop.requested is not None,
                on_end=self._speaker(),
                say=self.told.say,
            )
        finally:
            self.told.end()

    def _speaker(self) -> Callable[[Leg, Outcome], None]:
        """Says what every leg came to that is better than all before at its fidelity, and that a trial failed."""
        best: dict[int, float] = {}
        metric, steps = self.place.search.metric, self.cost.steps

        def speak(leg: Leg, outcome: Outcome) -> None:
            value = outcome.worth(metric)
            if leg.number == 2 * self.workers and outcome.steps:  # those before have read the data as well
                whole = seconds(outcome.seconds / outcome.steps * steps)
                self.told.say(f"at the speed of trial {leg.trial} all of them take {whole}")
            self.told.advance(1, "" if outcome.score is None else f"{metric} {getattr(outcome, metric):.4f}")
            if value is None:
                self.told.say(f"trial {leg.trial} fails: {outcome.reason}")
            elif value > best.get(leg.level, float("-inf")):
                best[leg.level] = value
                part = "" if leg.share == 1 else f" at {leg.share:.3g} of its training"
                self.told.say(f"trial {leg.trial}: {metric} {getattr(outcome, metric):.4f}{part}, the best so far")

        return speak

    def finish(self, over: bool) -> dict[str, Any]:
        """Write what came out.

        Raises:
            RunError: no trial could be trained.
        """
        assert self.engine is not None
        place, metric = self.place, self.place.search.metric
        legs = ended(self.engine)
        trials = trials_of(legs, place.space)
        best = best_of(trials, metric)
        if best is None:
            reason = next((trial["reason"] for trial in trials), "the budget was over before the first had ended")
            raise RunError(f"{self.out}: no trial of {len(trials)} could be trained; the first: {reason}")
        recipe = place.space.recipe(plain_tree(place.spec), best["drawn"])
        result = {
            "format": FORMAT,
            "method": type(place.search.method).__name__,
            "metric": metric,
            "over": over,
            "fields": list(place.space.domains),
            "best": {"trial": best["trial"], "score": best["score"], "loss": best["loss"], "share": best["share"],
                     "values": best["values"], "recipe": BEST},
            "cost": {
                "trials": len(trials), "legs": len(legs), "failed": sum(trial["state"] == "FAIL" for trial in trials),
                "workers_lost": sum(len(lost) for lost in self.engine.lost.values()),
                "epochs": round(sum(trial["epochs"] for trial in trials), 4),
                "seconds": round(sum(trial["seconds"] for trial in trials), 2),
            },
            "fidelities": correlations(trials, metric),
            "importance": importance(trials, place.space, metric, seed=place.search.seed),
            "pareto": pareto(trials, metric),
            "progress": progress(legs, metric),
            "trials": trials,
        }  # fmt: skip
        replace_file(self.out / BEST, dump_recipe(recipe).encode())
        replace_file(self.out / TABLE, trials_csv(trials).encode())
        if method_of(place.search).copies:
            replace_file(self.out / LINEAGE, lineage_csv(legs, place.space).encode())
        replace_file(self.out / RESULT, json.dumps(result, indent=1, allow_nan=False).encode())
        write_page(self.out / PAGE, result, place.space)
        return result


def progress(legs: Sequence[Ended], metric: str) -> list[dict[str, Any]]:
    """For each fidelity, the best result after so many epochs of all trials: [epochs, score or loss] in the order of legs."""
    spent = 0.0
    points: dict[float, list[list[float]]] = {}
    for each in legs:
        spent += each.outcome.epochs
        value = each.outcome.score if metric == "score" else each.outcome.loss
        if each.outcome.state != COMPLETE or value is None:
            continue
        known = points.setdefault(each.leg.share, [])
        if not known or (value > known[-1][1] if metric == "score" else value < known[-1][1]):
            known.append([round(spent, 6), value])
    return [
        {"share": share, "points": [*known, [round(spent, 6), known[-1][1]]]} for share, known in sorted(points.items())
    ]
