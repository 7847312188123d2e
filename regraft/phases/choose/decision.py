"""The usual decisions about how to adapt, each for a size of data, a distance of domains or a constraint, with pros and risks.

Yosinski et al., 2014, arXiv:1411.1792: what lower layers have learned serves most tasks, what upper ones have learned serves
those that are alike. So the more alike the tasks are and the fewer the rows, the more is left frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from regraft.phases.choose.rules import FAR, FEW_ROWS, Facts

Constraint = Literal["edge", "dynamic"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What is usually done in a situation, and what speaks for it and against it."""

    name: str
    when: str  # the measured numbers, and the rule over them
    take: str  # what is recommended, by the names that recipes use
    pros: str
    risks: str

    def sentence(self) -> str:
        """All of it in a line."""
        return f"decision {self.name}: {self.when}; take {self.take}. For it: {self.pros}. Risks: {self.risks}"


def decisions(facts: Facts, constraint: Constraint | None = None) -> list[Decision]:
    """The decision for the size of the data and the similarity of the tasks, and that for a constraint if there is one."""
    found = [] if facts.modality == "table" else [_by_size_and_similarity(facts)]
    return found if constraint is None else [*found, CONSTRAINTS[constraint]]


def _by_size_and_similarity(facts: Facts) -> Decision:
    return (
        (_small_far if facts.far else _small_near)(facts)
        if facts.small
        else (_big_far if facts.far else _near_big)(facts)
    )


def _measured(facts: Facts) -> str:
    """Size and similarity, and the rule over them."""
    size = f"{facts.rows:,} rows ({'few' if facts.small else 'enough'}: the line is at {FEW_ROWS:,})"
    gain = f", where it scores {facts.gap:+.3f} against the last layer" if facts.best_depth < 1 else ""
    near = (
        f"the probe is best at {facts.best_depth:.0%} of the height{gain} "
        f"({'another domain' if facts.far else 'tasks alike'}: the line is at {FAR:.0%})"
    )
    freeze = {
        (True, False): "freeze most",
        (True, True): "freeze the weights, and add what the domain needs",
        (False, False): "all may move, lower layers least",
        (False, True): "let lower layers move too",
    }[facts.small, facts.far]
    return f"{size}; {near}; few rows and similar tasks call for freezing more, so {freeze}"


def _small_far(facts: Facts) -> Decision:
    return Decision(
        name="small-far",
        when=_measured(facts),
        take="`Adapter` or `LoRA`, with strong augmentation (`train.augment`, `RandAugment`, `MixUp`; `TextEdit` for texts)",
        pros="few new weights, so little overfitting; the base stays as it is; augmentation stands in for rows",
        risks="a ceiling below full fine-tuning where the domain is very far; augmentation that changes labels",
    )


def _near_big(facts: Facts) -> Decision:
    return Decision(
        name="near-big",
        when=_measured(facts),
        take="full fine-tuning with `Discriminative` rates, lower for early layers, and a warm-up",
        pros="the highest ceiling; general lower layers move least",
        risks="time and memory of all weights; forgetting of the source task; a rate too high undoes pretraining",
    )


def _small_near(facts: Facts) -> Decision:
    return Decision(
        name="small-near",
        when=_measured(facts),
        take="the probe, then `LastK` with few blocks or `LoRA`",
        pros="the features fit already; minutes instead of hours; hardly any overfitting",
        risks="what the features lack is not learned",
    )


def _big_far(facts: Facts) -> Decision:
    return Decision(
        name="big-far",
        when=_measured(facts),
        take="full fine-tuning, or `StagedThaw` down to the first blocks",
        pros="lower layers learn what is new in the domain",
        risks="the longest training; forgetting; training from scratch may do as well, so compare",
    )


CONSTRAINTS: dict[str, Decision] = {
    "edge": Decision(
        name="edge",
        when="the model is to run on small hardware",
        take="`Distillation` into a small student, then 8-bit weights and activations (INT8 after training, or QAT where that "
        "loses too much); measure size and latency on the device",
        pros="a fraction of size, latency and energy, mostly at a small loss of quality",
        risks="quality lost on rare classes first; operators the device lacks; calibration has to be done again",
    ),
    "dynamic": Decision(
        name="dynamic",
        when="the domain changes over time",
        take="continual learning: a stage for each period, with replay of earlier rows or a penalty on forgetting (`EWC`)",
        pros="the model keeps up without training anew; what it knew is held",
        risks="forgetting where the penalty is weak, rigidity where it is strong; stored rows need space and a lawful basis; "
        "validate on old and new rows each time",
    ),
}
