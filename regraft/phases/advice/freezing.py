"""Advice on what to freeze, and until when."""

from __future__ import annotations

from collections.abc import Iterator

from regraft.phases.advice.rates import ALL_OF_IT
from regraft.phases.advice.situation import Finding, Situation

FEW_ROWS = 1000


def thawed_at_once(situation: Situation) -> Iterator[Finding]:
    """FREEZE1: a new head and all pretrained layers train together from the first step on little data."""
    if not situation.stages or situation.rows >= FEW_ROWS:
        return
    first = situation.stages[0]
    if first.pretrained_share >= ALL_OF_IT and situation.spec.probe is None:
        yield Finding(
            code="FREEZE1",
            severity="warning",
            where="techniques",
            reason=f"all pretrained layers train from the first step on {situation.rows:,} examples, under a head that knows "
            "nothing yet; its first gradients spoil what they hold",
            source="Howard and Ruder, 2018, arXiv:1801.06146, section 3.3; Kumar et al., 2022, arXiv:2202.10054",
            fix="add `StagedThaw`, fit the head first with `probe:`, or train less with LastK or LoRA",
        )


RULES = (thawed_at_once,)
