"""Advice on learning rates, schedules and weight decay."""

from __future__ import annotations

from collections.abc import Iterator

from regraft.optim.convergence import law_of
from regraft.optim.cycles import Cyclic, OneCycle, Sequence
from regraft.optim.optimizers import Adam, AdamW
from regraft.phases.advice.situation import Finding, Situation

ALL_OF_IT = 0.9  # share of the pretrained weights from which on a stage trains them all
HIGH_FOR_ADAM = 5e-4  # a rate above it unlearns what was pretrained
SMALL, HIGH_FOR_SMALL = 5_000_000, 2e-2  # parameters of a small network, and its bound (benchmarks/default_rates.py)
LARGE_BATCH = 256
USUAL_DECAY = (1e-4, 1e-2)


def one_rate(situation: Situation) -> Iterator[Finding]:
    """RATE1: all layers of a pretrained network train at one rate."""
    if situation.techniques & {
        "Discriminative",
        "StagedThaw",
    }:  # thawing later is another way to change lower layers less
        return
    for stage in situation.stages:
        if stage.pretrained_share >= ALL_OF_IT:
            yield Finding(
                code="RATE1",
                severity="warning",
                where="techniques",
                reason=f"stage {stage.name!r} trains all layers of a pretrained network at one rate, although the lower ones "
                "hold what is general and need to change least",
                source="Howard and Ruder, 2018, arXiv:1801.06146, section 3.2",
                fix="add `Discriminative` to `techniques:`",
            )


def rate_of_scratch(situation: Situation) -> Iterator[Finding]:
    """RATE2: pretrained weights are trained at a rate for training from scratch."""
    optimizer = situation.optimizer
    if not isinstance(optimizer, Adam | AdamW):
        return
    for stage in situation.stages:
        small = situation.modality == "image" and stage.pretrained is not None and stage.pretrained < SMALL
        if stage.pretrained_share >= ALL_OF_IT and optimizer.lr > (HIGH_FOR_SMALL if small else HIGH_FOR_ADAM):
            yield Finding(
                code="RATE2",
                severity="warning",
                where="train.optimizer.lr",
                reason=f"stage {stage.name!r} fine-tunes all pretrained weights at {optimizer.lr:g}, a rate for training from "
                "scratch; a tenth of it or less keeps what was learned before",
                source="Devlin et al., 2019, arXiv:1810.04805, appendix A.3; Mosbach et al., 2021, arXiv:2006.04884",
                fix=f"lower it to {optimizer.lr / 10:g} or less, or train fewer weights with LoRA or LastK",
            )


def no_warm_up(situation: Situation) -> Iterator[Finding]:
    """RATE3: a large batch or a whole fine-tuning begins at the full rate."""
    schedule, batch = situation.schedule, situation.spec.train.batch_size
    if schedule.warmup or isinstance(schedule, OneCycle | Sequence | Cyclic):
        return
    whole = any(stage.pretrained_share >= ALL_OF_IT for stage in situation.stages)
    if batch >= LARGE_BATCH or whole:
        what = f"batches of {batch:,}" if batch >= LARGE_BATCH else "fine-tuning all pretrained weights"
        yield Finding(
            code="RATE3",
            severity="warning",
            where="train.schedule.warmup",
            reason=f"{what} at the full rate from the first step often begins with a jump of the loss",
            source="Goyal et al., 2017, arXiv:1706.02677, section 2.2; Mosbach et al., 2021, arXiv:2006.04884",
            fix=f"give the schedule a warm-up: {{{type(schedule).__name__}: {{warmup: 0.06}}}}",
        )


def robbins_monro(situation: Situation) -> Iterator[Finding]:
    """RATE4: the schedule, if it went on for ever, would break a condition for convergence.

    One that ends at a given step, such as a cosine, is not spoken of: it is at its floor then; nor one that acts on validation,
    for when it falls is not known. `regraft schedule` says of each schedule which condition it satisfies.
    """
    law = law_of(situation.schedule)
    if law is None or law.ends or situation.schedule.remembers or (law.travels and law.settles):
        return
    broken = "the sum of the rates is finite" if not law.travels else "the sum of the squared rates is infinite"
    follows = (
        "a far minimum may never be reached" if not law.travels else "the weights never come to rest around a minimum"
    )
    kept = "" if law.travels == law.settles else "; the other condition holds"
    yield Finding(
        code="RATE4",
        severity="note",
        where="train.schedule",
        reason=f"if {type(situation.schedule).__name__} went on for ever, {broken}, so {follows}{kept}; in a stage of a given "
        "length that is a matter of taste",
        source="Robbins and Monro, 1951, Annals of Mathematical Statistics 22(3)",
        fix="{Power: {exponent: 0.6}} keeps both conditions",
    )


def unusual_decay(situation: Situation) -> Iterator[Finding]:
    """DECAY1: the weight decay is outside what is usual."""
    decay, (low, high) = situation.optimizer.weight_decay, USUAL_DECAY
    if decay == 0 or low <= decay <= high:
        return
    effect = "hardly holds any weight back" if decay < low else "may hold the weights back more than the data can push"
    yield Finding(
        code="DECAY1",
        severity="warning",
        where="train.optimizer.weight_decay",
        reason=f"a weight decay of {decay:g} {effect}; usual values lie from {low:g} to {high:g}",
        source="Loshchilov and Hutter, 2019, arXiv:1711.05101, section 4; Krogh and Hertz, 1992",
        fix=f"set it to {low if decay < low else high:g}, or choose it by validation",
    )


RULES = (one_rate, rate_of_scratch, no_warm_up, robbins_monro, unusual_decay)
