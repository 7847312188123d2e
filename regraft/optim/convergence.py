"""The two conditions of Robbins and Monro on a schedule: are the steps long enough in all, and do they die down?

Robbins and Monro, 1951, Annals of Mathematical Statistics 22(3): stochastic descent converges where the sum of the rates is
infinite and the sum of their squares finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from regraft.optim.cycles import Cyclic, OneCycle, Sequence, WarmRestarts
from regraft.optim.plateau import ReduceLROnPlateau, RestartOnPlateau
from regraft.optim.schedules import Constant, Cosine, Exponential, Linear, Polynomial, Power, Schedule, StepDecay


@dataclass(frozen=True, kw_only=True)
class Law:
    """What holds of a schedule that goes on for ever."""

    travels: bool  # the sum of the rates is infinite
    settles: bool  # the sum of the squared rates is finite
    ends: bool = False  # it comes to its last rate at the end of the stage, and is taken to stay there

    def sentence(self, name: str) -> str:
        """Which of the two conditions the schedule of that name satisfies."""
        kept = [says for holds, says in ((self.travels, "sum of rates infinite"), (self.settles, "sum of squares finite"))
                if holds]  # fmt: skip
        end = " stays at its last rate after its end: it" if self.ends else " goes on for ever: it"
        return f"Robbins-Monro, where {name}{end} satisfies " + (
            "both conditions" if len(kept) == 2 else f"one of the two ({kept[0]})" if kept else "neither"
        )


def law_of(schedule: Schedule) -> Law | None:
    """Which conditions hold; None for a schedule of another make.

    One that goes down to a floor at the end of its stage (a line, a cosine) is taken to stay there. What comes back again and
    again, and a constant, never settle.
    """
    match schedule:
        case Power():
            return Law(travels=schedule.exponent <= 1.0, settles=schedule.exponent > 0.5)
        case Exponential():
            return Law(travels=schedule.floor == 1.0, settles=schedule.floor < 1.0)
        case Constant() | StepDecay() | WarmRestarts():
            return Law(travels=True, settles=False)
        case Cyclic():
            dies = schedule.low == 0 and schedule.shrink < 1.0
            return Law(travels=not dies, settles=dies)
        case Linear() | Cosine() | Polynomial() | OneCycle():
            return Law(travels=schedule.floor > 0, settles=schedule.floor == 0, ends=True)
        case ReduceLROnPlateau():
            return Law(travels=schedule.floor > 0, settles=schedule.floor == 0)
        case RestartOnPlateau():
            return law_of(cast(Schedule, schedule.schedule))
        case Sequence():
            return law_of(cast(Schedule, schedule.parts[-1].schedule))
        case _:
            return None
