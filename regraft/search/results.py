"""What came out of a search, as JSON values: trials, the best one, what mattered, and what low fidelities said of high ones."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from regraft.data.csv_cells import harmless
from regraft.search.engine import Engine
from regraft.search.legs import COMPLETE, FAIL, Leg, Outcome
from regraft.search.samplers import Past, quiet, study_of
from regraft.search.space import Space

FORMAT = "regraft.search/1"
FEWEST = 4  # trials that an importance or a correlation is computed from
COLUMNS = (
    "trial", "state", "share", "score", "loss", "steps", "epochs", "seconds", "attempts", "parameters", "trained", "bytes",
    "latency_ms",
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """A leg and its outcome."""

    leg: Leg
    outcome: Outcome


def ended(engine: Engine) -> list[Ended]:
    """Every leg that has ended, in the order of legs."""
    return [Ended(leg, engine.outcomes[number]) for number, leg in engine.legs.items() if number in engine.outcomes]


def trials_of(legs: Sequence[Ended], space: Space) -> list[dict[str, Any]]:
    """A row for each trial, in their order: how far it came, what it was worth there, and what it cost in all."""
    by_trial: dict[int, list[Ended]] = {}
    for each in legs:
        by_trial.setdefault(each.leg.trial, []).append(each)
    return [_row(number, own, space) for number, own in sorted(by_trial.items())]


def _row(number: int, own: Sequence[Ended], space: Space) -> dict[str, Any]:
    fine = [each for each in own if each.outcome.state == COMPLETE]
    last = max(fine, key=lambda each: each.leg.level) if fine else own[-1]
    failed = next((each.outcome.reason for each in own if each.outcome.state == FAIL), "")
    models = [each.outcome.model for each in own if each.outcome.model]
    return {
        "trial": number,
        "state": FAIL if failed else COMPLETE,
        "level": last.leg.level,
        "share": last.leg.share,
        "score": last.outcome.score,
        "loss": last.outcome.loss,
        "steps": sum(each.outcome.steps for each in own),
        "epochs": round(sum(each.outcome.epochs for each in own), 6),
        "seconds": round(sum(each.outcome.seconds for each in own), 3),
        "attempts": max(each.outcome.attempts for each in own),
        "reason": failed,
        "values": space.values(last.leg.drawn),
        "drawn": dict(last.leg.drawn),
        "results": [
            {"level": e.leg.level, "share": e.leg.share, "score": e.outcome.score, "loss": e.outcome.loss} for e in fine
        ],
        **{name: (models[-1] if models else {}).get(name) for name in ("parameters", "trained", "bytes", "latency_ms")},
    }  # fmt: skip


def worth(row: Mapping[str, Any], metric: str) -> float | None:
    """What is maximised, of a trial or a result."""
    value = row["score"] if metric == "score" else row["loss"]
    return None if value is None else value if metric == "score" else -value


def best_of(trials: Sequence[Mapping[str, Any]], metric: str) -> Mapping[str, Any] | None:
    """The best of the trials that came furthest; of equal ones that of the lower loss. None where all failed."""
    judged = [trial for trial in trials if worth(trial, metric) is not None]
    return max(judged, key=lambda t: (t["level"], worth(t, metric), -t["loss"], -t["trial"]), default=None)


def correlations(trials: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
    """For each fidelity, the rank correlation (Spearman) of its results with those at the highest that enough trials reached.

    Only trials that went on have both, and those were the better ones, so it is lower than over all trials.
    """
    from scipy.stats import spearmanr

    by_level: dict[int, dict[int, float]] = {}
    shares: dict[int, float] = {}
    for trial in trials:
        for result in trial["results"]:
            by_level.setdefault(result["level"], {})[trial["trial"]] = worth(result, metric) or 0.0
            shares[result["level"]] = result["share"]
    enough = [level for level, found in by_level.items() if len(found) >= FEWEST]
    if not enough or max(enough) == min(by_level):
        return []
    high = max(enough)
    found: list[dict[str, Any]] = []
    for low in sorted(level for level in by_level if level < high):
        both = sorted(by_level[low].keys() & by_level[high].keys())
        pairs = [(by_level[low][trial], by_level[high][trial]) for trial in both]
        if len(pairs) < FEWEST or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
            continue
        lows, highs = zip(*pairs, strict=True)
        rho = float(cast(Any, spearmanr(lows, highs)).statistic)
        found.append({"low": shares[low], "high": shares[high], "trials": len(pairs), "spearman": rho})
    return found


def importance(trials: Sequence[Mapping[str, Any]], space: Space, metric: str, *, seed: int) -> dict[str, Any]:
    """`{share, fields: {name: part}}`: how much of the variance of results each field explains (fANOVA), at one fidelity.

    Hutter, Hoos and Leyton-Brown, 2014, ICML. It is the highest fidelity that a quarter of the trials reached; fields that only
    some options have are left out.
    """
    import optuna
    from optuna.importance import FanovaImportanceEvaluator

    by_level: dict[int, list[Past]] = {}
    shares: dict[int, float] = {}
    for trial in trials:
        for result in trial["results"]:
            value = worth(result, metric)
            if value is not None:
                by_level.setdefault(result["level"], []).append(Past(trial["drawn"], value, 0, True))
                shares[result["level"]] = result["share"]
    enough = [level for level, past in by_level.items() if len(past) >= max(FEWEST, len(trials) / 4)]
    if not enough:
        return {}
    level = max(enough)
    if len({past.worth for past in by_level[level]}) < 2:
        return {}
    with quiet():
        study = study_of(space, by_level[level])
        try:
            parts = optuna.importance.get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed))
        except (RuntimeError, ValueError):  # no field varies among these trials
            return {}
    return {"share": shares[level], "trials": len(by_level[level]), "fields": {k: float(v) for k, v in parts.items()}}


def pareto(trials: Sequence[Mapping[str, Any]], metric: str) -> list[int]:
    """Trials of which none other is at least as good in quality, trained parameters and latency, and better in one of them."""
    points = {
        trial: (-value if metric == "score" else value, trained, latency)
        for trial, (value, trained, latency) in compared(trials, metric).items()
    }
    return [
        number
        for number, point in points.items()
        if not any(
            all(a <= b for a, b in zip(other, point, strict=True)) and other != point for other in points.values()
        )
    ]


def compared(trials: Sequence[Mapping[str, Any]], metric: str) -> dict[int, tuple[float, float, float]]:
    """Result, trained parameters and latency by trial, of the trials at one fidelity: the highest that enough of them reached."""
    found: dict[int, dict[int, tuple[float, float, float]]] = {}
    for trial in trials:
        for result in trial["results"]:
            if trial["trained"] is not None:
                costs = float(trial["trained"]), float(trial["latency_ms"] or 0.0)
                found.setdefault(result["level"], {})[trial["trial"]] = (float(result[metric]), *costs)
    enough = [level for level, points in found.items() if len(points) >= min(FEWEST, len(trials))]
    return found[max(enough or found)] if found else {}


# ---- files


def trials_csv(trials: Sequence[Mapping[str, Any]]) -> str:
    """The table of trials: a column for each field that was searched over."""
    paths = sorted({path for trial in trials for path in trial["values"]})
    return _csv([*COLUMNS, *paths, "reason"], [{**trial, **trial["values"]} for trial in trials])


def lineage_csv(legs: Sequence[Ended], space: Space) -> str:
    """Who went on from whom with which values: a line for each leg of a trial."""
    paths = list(space.domains)
    rows = [
        {
            "leg": each.leg.number, "trial": each.leg.trial, "generation": each.leg.level, "after_leg": each.leg.after,
            "from_trial": each.leg.source, "state": each.outcome.state, "score": each.outcome.score, "loss": each.outcome.loss,
            **space.values(each.leg.drawn),
        }
        for each in legs
    ]  # fmt: skip
    columns = ["leg", "trial", "generation", "after_leg", "from_trial", "state", "score", "loss"]
    return _csv([*columns, *paths], rows)


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([harmless(column) for column in columns])
    for row in rows:
        writer.writerow([harmless("" if row.get(name) is None else str(row[name])) for name in columns])
    return stream.getvalue()
