"""Advice on the size of batches."""

from __future__ import annotations

from collections.abc import Iterator

from regraft.phases.advice.situation import Finding, Situation

USUAL_BATCH = (16, 512)
FEWEST_FOR_BATCH_NORM = 16


def unusual_batch(situation: Situation) -> Iterator[Finding]:
    """BATCH1: a batch of fewer than tens or more than hundreds of examples, or of no power of two."""
    size, (low, high) = situation.spec.train.batch_size, USUAL_BATCH
    if low <= size <= high and size & (size - 1) == 0:
        return
    if size < low:
        reason = "its gradient is noisy, and a processor works on less than it could"
    elif size > high:
        reason = "each step costs more and says little more, and what is found often generalises worse"
    else:
        reason = "kernels are tuned for powers of two"
    yield Finding(
        code="BATCH1",
        severity="note",
        where="train.batch_size",
        reason=f"a batch of {size:,}: {reason}",
        source="Masters and Luschi, 2018, arXiv:1804.07612; Keskar et al., 2017, arXiv:1609.04836",
        fix=f"try {min(high, max(low, 1 << (size - 1).bit_length()))}, and scale the learning rate with it",
    )


def batch_norm_on_few(situation: Situation) -> Iterator[Finding]:
    """BATCH2: batch normalisation estimates its statistics on a handful of examples."""
    train = situation.spec.train
    rows = train.batch_size // train.micro
    for stage in situation.stages:
        if stage.batch_norms and rows < FEWEST_FOR_BATCH_NORM:
            yield Finding(
                code="BATCH2",
                severity="warning",
                where="train.batch_size" if train.micro == 1 else "train.micro",
                reason=f"stage {stage.name!r} moves the statistics of {stage.batch_norms} batch normalisations on {rows} "
                "examples at a time, which is too few to estimate them",
                source="Wu and He, 2018, arXiv:1803.08494, figure 1",
                fix=f"use batches, or slices of them, of {FEWEST_FOR_BATCH_NORM} or more, `train.steady: true`, or the technique "
                "GroupNorm",
            )


def batch_norm_over_time(situation: Situation) -> Iterator[Finding]:
    """BATCH3: batch normalisation in a recurrent network, whose statistics differ from step to step of a sequence."""
    for stage in situation.stages:
        if stage.batch_norms and stage.recurrent:
            yield Finding(
                code="BATCH3",
                severity="warning",
                where="models.main",
                reason=f"stage {stage.name!r} trains {stage.batch_norms} batch normalisations beside {stage.recurrent} recurrent "
                "layers: statistics differ along a sequence, and sequences in use may be longer than any seen in training",
                source="Ba et al., 2016, arXiv:1607.06450, section 3.1",
                fix="use layer normalisation in the network, or the technique GroupNorm or WeightNorm",
            )


RULES = (unusual_batch, batch_norm_on_few, batch_norm_over_time)
