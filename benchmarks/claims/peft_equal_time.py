"""What training few weights is worth at equal time: LoRA, adapters, prefix and prompt against all weights.

    python benchmarks/claims/peft_equal_time.py [--seeds 5] [--only SETTING ...] [--again]

A step of one arm costs less than a step of another, so each gets as many as fit into the time of full fine-tuning's: the steps
are timed first, in turns, and the seconds each run really took are among the results. All start from a head fitted on frozen
features. Data comes from `REGRAFT_DATA`.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace

from common import Arm, Claim, Experiment, Setting, run, trained
from harness import DATA, say

TIMED = 6  # steps of a run that is timed
FULL = Arm(name="full", rates=(3e-5, 1e-4))
FEW = (
    Arm(name="LoRA", rates=(5e-4, 2e-3), techniques=({"LoRA": {"rank": 8}},)),
    Arm(name="Adapter", rates=(5e-4, 2e-3), techniques=({"Adapter": {"width": 32}},)),
    Arm(name="PrefixTuning", rates=(2e-3, 1e-2), techniques=({"PrefixTuning": {"tokens": 16}},)),
    Arm(name="PromptTuning", rates=(1e-2, 5e-2), techniques=({"PromptTuning": {"tokens": 16}},)),
)
SOURCES = {
    "LoRA": "Hu et al. 2021, arXiv:2106.09685: on par with or better than full fine-tuning",
    "Adapter": "Houlsby et al. 2019, arXiv:1902.00751: within 0.4 % of full fine-tuning",
    "PrefixTuning": "Li and Liang 2021, arXiv:2101.00190: better than full fine-tuning on little data",
    "PromptTuning": "Lester et al. 2021, arXiv:2104.08691: behind full fine-tuning in small models",
}
TRAIN = {"batch_size": 16, "schedule": {"Linear": {"warmup": 0.06}}}
MODEL = {"name": "minilm"}


def setting(name: str, *, rows: int) -> Setting:
    """So many rows of a data set, and of its test split at most 500."""
    data = {"path": str(DATA / name), "limit": rows, "limit_valid": 200, "limit_test": 500}
    return Setting(name=f"{name}, {rows} rows", data=data, model=MODEL, steps=40, train=TRAIN)


def at_equal_time(where: Setting) -> tuple[Arm, ...]:
    """The arms, each with the steps that take as long as full fine-tuning's; timed in turns, medians of three."""
    seconds: dict[str, list[float]] = {arm.name: [] for arm in (FULL, *FEW)}
    for _ in range(3):
        for arm in (FULL, *FEW):
            seconds[arm.name].append(trained(where, replace(arm, steps=TIMED), rate=arm.rates[0], seed=0).seconds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    steps = {name: max(TIMED, round(where.steps * medians[FULL.name] / took)) for name, took in medians.items()}
    say(f"{where.name}: steps in the time of {where.steps} of all weights: {steps}")
    return tuple(replace(arm, steps=steps[arm.name]) for arm in (FULL, *FEW))


def experiments() -> list[Experiment]:
    """Two classes of short sentences, and 77 of short questions."""
    made = []
    for where in (setting("sst2", rows=400), setting("banking77", rows=1000)):
        if "--only" in sys.argv and where.name not in sys.argv:
            continue  # so that nothing is timed in vain
        claims = [
            Claim(says=f"{arm.name} is better than full", source=SOURCES[arm.name], better=arm.name, than="full")
            for arm in FEW
        ]
        made.append(Experiment(setting=where, arms=at_equal_time(where), claims=tuple(claims)))
    return made


if __name__ == "__main__":
    run("peft_equal_time", experiments(), __doc__ or "")
