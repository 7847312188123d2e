"""The techniques under contract, a row each: a setting that has an effect, and one that changes nothing if there is one."""

from __future__ import annotations

from regraft.techniques.alignment.grpo import GRPO
from regraft.techniques.continual.ewc import EWC
from regraft.techniques.distil.distillation import Distillation
from regraft.techniques.domain.dann import DANN
from regraft.techniques.generative.gan import GAN
from regraft.techniques.meta.maml import MAML
from regraft.techniques.regularise.sam import SAM
from regraft.techniques.regularise.weight_average import WeightAverage
from regraft.testing import Case, Players

ROWS = [
    Case(DANN(target="target", width=8), neutral=DANN(target="target", weight=0)),
    Case(Distillation(teacher="teacher"), neutral=Distillation(teacher="teacher", weight=0)),
    Case(EWC(weight=50.0, samples=40), neutral=EWC(weight=0)),
    Case(GAN(rounds=2), network=Players),
    Case(GRPO(group_size=4, kl_weight=0.1)),
    Case(MAML(ways=3, shots=2, queries=2, tasks=4)),
    Case(SAM(rho=0.1), neutral=SAM(rho=0)),
    Case(WeightAverage(decay=0.5), neutral=WeightAverage(decay=0)),
]
CASES = {case.name: case for case in ROWS}
