"""Advice on how a rate, momenta and a batch fit together, and on schedules that can never act."""

from __future__ import annotations

import math
from collections.abc import Iterator

from regraft.optim.plateau import OnPlateau
from regraft.phases.advice.rates import LARGE_BATCH
from regraft.phases.advice.situation import Finding, Situation
from regraft.phases.resolve import FINE_TUNING, LARGE

USUAL_BATCH_SIZE = 32  # that default rates are for
SHORT_MEMORY = 0.995  # beta2 below it follows the gradients of a few hundred steps


def unscaled_rate(situation: Situation) -> Iterator[Finding]:
    """RATE5: a large batch at the rate for a small one."""
    train, optimizer = situation.spec.train, situation.optimizer
    usual = type(optimizer).model_fields["lr"].default
    of_itself = any(math.isclose(optimizer.lr, rate) for rate in (usual, usual * FINE_TUNING))
    if train.batch_size < LARGE_BATCH or train.scale_from is not None or not of_itself:
        return
    yield Finding(
        code="RATE5",
        severity="note",
        where="train.optimizer.lr",
        reason=f"{optimizer.lr:g} is the usual rate of {type(optimizer).__name__} for batches of {USUAL_BATCH_SIZE}; a batch of "
        f"{train.batch_size:,} makes {train.batch_size / USUAL_BATCH_SIZE:g} times fewer steps, so it gets less far",
        source="Goyal et al., 2017, arXiv:1706.02677, section 2.1; Malladi et al., 2022, arXiv:2205.10287",
        fix=f"`train.scale_from: {{batch_size: {USUAL_BATCH_SIZE}, rule: sqrt}}` (linear for SGD), with a warm-up",
    )


def long_memory(situation: Situation) -> Iterator[Finding]:
    """OPT1: at a very large batch the mean of squared gradients spans more steps than there may be."""
    betas = getattr(situation.optimizer, "betas", None)
    size = situation.spec.train.batch_size
    if betas is None or size < LARGE or betas[1] < SHORT_MEMORY:
        return
    yield Finding(
        code="OPT1",
        severity="note",
        where="train.optimizer.betas",
        reason=f"beta2 {betas[1]:g} averages squared gradients over some {1 / (1 - betas[1]):,.0f} steps, long for steps "
        f"of {size:,} examples; early spikes of the loss are often seen",
        source="Malladi et al., 2022, arXiv:2205.10287; Liu et al., 2019, arXiv:1907.11692, section 3.1",
        fix="`betas: [0.9, 0.98]`, or leave betas out and give `train.scale_from`",
    )


def heavy_players(situation: Situation) -> Iterator[Finding]:
    """OPT2: the players of a GAN keep a long momentum."""
    betas = getattr(situation.optimizer, "betas", None)
    if "GAN" not in situation.techniques or betas is None or betas[0] <= 0.5:
        return
    yield Finding(
        code="OPT2",
        severity="warning",
        where="train.optimizer.betas",
        reason=f"beta1 {betas[0]:g} keeps each player of a GAN going where the other has moved away from; training oscillates",
        source="Radford et al., 2016, arXiv:1511.06434, section 4",
        fix="`Adam: {lr: 0.0002, betas: [0.5, 0.999]}`",
    )


def idle_plateau(situation: Situation) -> Iterator[Finding]:
    """RATE6: a schedule that waits for validation results gets too few of them to act."""
    schedule, times = situation.schedule, situation.spec.validate_.times
    if not isinstance(schedule, OnPlateau) or times >= schedule.patience + 3:
        return
    yield Finding(
        code="RATE6",
        severity="warning",
        where="validate.times",
        reason=f"{type(schedule).__name__} waits for {schedule.patience} results without progress after the best, and a stage "
        f"has {times}, the last at its end: it can never act",
        source="torch.optim.lr_scheduler.ReduceLROnPlateau, on patience",
        fix=f"`validate: {{times: {4 * (schedule.patience + 1)}}}`",
    )


RULES = (unscaled_rate, long_memory, heavy_players, idle_plateau)
