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


ADVICE = {  # (few rows, another domain) -> name, what to take, for it, risks
    (True, True): (
        "small-far",
        "`Adapter` or `LoRA`, with strong augmentation (`train.augment`, `RandAugment`, `MixUp`; `TextEdit` for texts)",
        "few new weights, so little overfitting; the base stays as it is; augmentation stands in for rows",
        "a ceiling below full fine-tuning where the domain is very far; augmentation that changes labels",
    ),
    (True, False): (
        "small-near",
        "the probe, then `LastK` with few blocks or `LoRA`",
        "the features fit already; minutes instead of hours; hardly any overfitting",
        "what the features lack is not learned",
    ),
    (False, True): (
        "big-far",
        "full fine-tuning, or `StagedThaw` down to the first blocks",
        "lower layers learn what is new in the domain",
        "the longest training; forgetting; training from scratch may do as well, so compare",
    ),
    (False, False): (
        "near-big",
        "full fine-tuning with `Discriminative` rates, lower for early layers, and a warm-up",
        "the highest ceiling; general lower layers move least",
        "time and memory of all weights; forgetting of the source task; a rate too high undoes pretraining",
    ),
}


def _by_size_and_similarity(facts: Facts) -> Decision:
    name, take, pros, risks = ADVICE[facts.small, facts.far]
    return Decision(name=name, when=_measured(facts), take=take, pros=pros, risks=risks)


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
