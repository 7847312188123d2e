"""What the claims share: arms trained on the same rows with the same seeds, compared in pairs, and a plain verdict.

A claim says that one arm does better than another by some number. Each seed draws its own sample of the training rows, its own
order and its own fresh weights, the same ones for every arm. Where an arm gives several rates, the one with the lowest
validation loss in a run with a seed of its own is taken, so that every arm was tuned with the same effort. The interval is
Student's over the differences within a seed. A claim *held* where the interval lies on its side of zero, was *reversed* where it
lies on the other side, and is *open* where zero is inside.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import scipy.stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from harness import RESULTS, Store, rounds, say

TUNING = 1000  # the seed of the runs that choose a rate

Tree = dict[str, Any]
Measure = Callable[["Trained"], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all arms of a claim are trained on."""

    name: str
    data: Tree  # of `data.main`
    model: Tree  # of `models.main`
    steps: int
    probe: bool = True  # start from a head fitted on frozen features
    train: Tree = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train."""

    name: str
    rates: tuple[float, ...]  # the best of them on the validation rows is used
    techniques: tuple[Any, ...] = ()
    train: Tree = field(default_factory=dict)
    steps: int | None = None
    optimizer: str = "AdamW"
    optimizer_options: Tree = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """`better` does better than `than` by `metric`."""

    says: str
    source: str
    better: str
    than: str
    metric: str = "accuracy"
    lower: bool = False  # is less of it better?


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Arms on a setting, and what is claimed of them."""

    setting: Setting
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]
    measure: Measure | None = None  # more numbers of a trained arm


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished arm."""

    assembled: Any
    seconds: float
    report: Any


def tree_of(setting: Setting, arm: Arm, *, rate: float, seed: int) -> Tree:
    """The recipe of an arm."""
    options = {"optimizer": {arm.optimizer: {"lr": rate} | arm.optimizer_options}} | setting.train | arm.train
    tree: Tree = {
        "seed": seed,
        "data": {"main": setting.data | {"seed": seed}},
        "models": {"main": setting.model},
        "train": options,
        "stages": [{"name": "train", "steps": arm.steps or setting.steps}],
        "techniques": list(arm.techniques),
    }
    return tree | ({"probe": {"depths": "last"}} if setting.probe else {})


def trained(setting: Setting, arm: Arm, *, rate: float, seed: int) -> Trained:
    """The arm trained to its end; seconds are those of the training alone."""
    from regraft.config.recipe import recipe_from_tree
    from regraft.core import fit
    from regraft.phases.build import assemble

    assembled = assemble(recipe_from_tree(copy.deepcopy(tree_of(setting, arm, rate=rate, seed=seed))))
    began = time.perf_counter()
    report = fit(assembled.recipe, seed=seed)
    return Trained(assembled=assembled, seconds=time.perf_counter() - began, report=report)


def scores(done: Trained, split: str) -> dict[str, float]:
    """Accuracy, negative log-likelihood in nats and expected calibration error (15 bins) of a split."""
    import numpy as np

    from regraft.phases.choose.features import model_outputs
    from regraft.phases.evaluate.classification import nll_values
    from regraft.phases.evaluate.reliability import ece_statistics, stated_and_observed

    entry = done.assembled.main
    outputs = model_outputs(done.assembled.recipe.model, entry.encoded(split), precision="fp32").double()
    targets = entry.targets(split).numpy()
    p = outputs.softmax(-1).numpy()
    stated, observed = stated_and_observed(p, targets, "multiclass")
    ece = ece_statistics(stated, observed, len(targets))(np.ones((len(targets), 1)))["ece"]
    return {
        "accuracy": float((p.argmax(1) == targets).mean()),
        "nll": float(nll_values(p, targets).mean()),
        "ece": float(ece[0]),
    }


def best_rate(setting: Setting, arm: Arm, store: Store) -> float:
    """The rate with the lowest validation loss in a run with a seed of its own; kept in the result file."""
    if len(arm.rates) == 1:
        return arm.rates[0]
    kept: dict[str, dict[str, float]] = store.content.setdefault("rates", {})
    key = f"{setting.name}/{arm.name}"
    losses = kept.setdefault(key, {})
    for rate in arm.rates:
        if str(rate) not in losses:
            losses[str(rate)] = scores(trained(setting, arm, rate=rate, seed=TUNING), "valid")["nll"]
            store.write()
    return float(min(losses, key=lambda rate: losses[rate]))


def difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Mean of ours - theirs within a seed, and its 95 % interval (Student's t); of one pair the whole line."""
    pairs = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = statistics.mean(pairs)
    if len(pairs) < 2:
        return mean, float("-inf"), float("inf")
    reach = float(scipy.stats.t.ppf(0.975, len(pairs) - 1)) * statistics.stdev(pairs) / len(pairs) ** 0.5
    return mean, mean - reach, mean + reach


def verdict(claim: Claim, low: float, high: float) -> str:
    """held, reversed or open."""
    if claim.lower:
        low, high = -high, -low
    return "held" if low > 0 else "reversed" if high < 0 else "open"


def judged(experiment: Experiment, store: Store) -> list[Tree]:
    """A line a claim."""
    lines: list[Tree] = []
    for claim in experiment.claims:
        ours, theirs = (
            store.values(f"{experiment.setting.name}/{arm}", claim.metric) for arm in (claim.better, claim.than)
        )
        count = min(len(ours), len(theirs))
        mean, low, high = difference(ours[:count], theirs[:count])
        lines.append({
            "claim": claim.says, "source": claim.source, "on": experiment.setting.name, "metric": claim.metric, "seeds": count,
            "better": claim.better, "of_better": statistics.mean(ours), "than": claim.than, "of_than": statistics.mean(theirs),
            "difference": mean, "low": low, "high": high, "verdict": verdict(claim, low, high),
        })  # fmt: skip
    return lines


def run(name: str, experiments: Sequence[Experiment], description: str) -> None:
    """Measure every arm of every experiment with every seed, in turns, and write the result file."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="settings, by name")
    parser.add_argument("--again", action="store_true", help="forget earlier runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "claims" / f"{name}.json")
    options = parser.parse_args()
    chosen = [e for e in experiments if not options.only or e.setting.name in options.only]
    store = Store(options.out, settings={"seeds": options.seeds})
    for experiment in chosen:
        measure(experiment, store, seeds=options.seeds, again=options.again)
    store.write(claims=[line for e in chosen for line in judged(e, store)])
    for line in store.content["claims"]:
        say(
            f"{line['verdict']:9}{line['on']}: {line['better']} {line['of_better']:.4f}, {line['than']} {line['of_than']:.4f} "
            f"({line['metric']}; {line['difference']:+.4f}, {line['low']:+.4f} to {line['high']:+.4f})"
        )


def measure(experiment: Experiment, store: Store, *, seeds: int, again: bool) -> None:
    """Train every arm with every seed."""
    setting = experiment.setting
    arms: Mapping[str, Arm] = {f"{setting.name}/{arm.name}": arm for arm in experiment.arms}
    if again:
        store.forget(list(arms))
    rates = {key: best_rate(setting, arm, store) for key, arm in arms.items()}
    for key in rounds(dict.fromkeys(arms, seeds), store):
        seed = len(store.runs.get(key, []))
        done = trained(setting, arms[key], rate=rates[key], seed=seed)
        numbers = scores(done, "test") | {"seconds": done.seconds, "rate": rates[key], "seed": seed}
        numbers |= experiment.measure(done) if experiment.measure else {}
        store.add(key, {name: round(value, 6) for name, value in numbers.items()})
        say(f"{key}, seed {seed}: accuracy {numbers['accuracy']:.4f}, ece {numbers['ece']:.4f} in {done.seconds:.1f} s")
