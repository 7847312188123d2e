"""What a rule of advice can see, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import nn

from regraft.config.recipe import RecipeSpec
from regraft.core import Stage
from regraft.models.graft import Graft
from regraft.optim.optimizers import Optimizer
from regraft.optim.schedules import Schedule
from regraft.phases.build import Assembled

BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One piece of advice."""

    code: str  # letters of its theme and a number; it never changes its meaning
    severity: Literal["warning", "note"]
    where: str  # dotted name of the field it is about
    reason: str  # what is so, and what follows from it
    source: str  # who found that out
    fix: str  # what to write instead


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """What one stage of a compiled recipe trains."""

    name: str
    pretrained_share: (
        float  # trained parameters of the pretrained part, as a share of that part; 0 where nothing is pretrained
    )
    pretrained: int | None = None  # parameters of that part; None where it is not known
    batch_norms: int  # batch normalisations whose running statistics the stage moves
    recurrent: int = 0  # recurrent layers of its model


@dataclass(frozen=True, kw_only=True)
class Situation:
    """A recipe with its data and model."""

    spec: RecipeSpec
    rows: int  # for training
    classes: tuple[str, ...]
    modality: str
    stages: tuple[StageFacts, ...]

    @property
    def optimizer(self) -> Optimizer:
        """Of every stage."""
        return cast(Optimizer, self.spec.train.optimizer)

    @property
    def schedule(self) -> Schedule:
        """Of every stage."""
        return cast(Schedule, self.spec.train.schedule)

    @property
    def techniques(self) -> frozenset[str]:
        """Names of the techniques in use."""
        return frozenset(type(technique).__name__ for technique in self.spec.techniques)


Rule = Callable[[Situation], Iterator[Finding]]


def situation(assembled: Assembled) -> Situation:
    """What the rules see of a recipe whose objects have been made."""
    materials = assembled.main.materials
    return Situation(
        spec=assembled.spec,
        rows=len(materials.rows("train")),
        classes=tuple(materials.dataset.schema.classes),
        modality=materials.dataset.schema.modality,
        stages=tuple(
            facts_of(stage, _pretrained(assembled), steady=assembled.spec.train.steady)
            for stage in assembled.recipe.stages
        ),
    )


def facts_of(stage: Stage[Any], pretrained: Sequence[nn.Parameter], *, steady: bool) -> StageFacts:
    """What a stage trains of the pretrained parameters, and the statistics it moves unless the model is `steady`."""
    trained = {
        id(p)
        for name, p in stage.model.named_parameters()
        if (p.requires_grad if stage.trains is None else name in stage.trains)
    }
    total = sum(p.numel() for p in pretrained)
    moving = sum(
        isinstance(module, BATCH_NORM) and any(id(p) in trained for p in module.parameters())
        for module in stage.model.modules()
    )
    return StageFacts(
        name=stage.name,
        pretrained=total,
        pretrained_share=sum(p.numel() for p in pretrained if id(p) in trained) / total if total else 0.0,
        batch_norms=0 if steady else moving,
        recurrent=sum(isinstance(module, (nn.RNNBase, nn.RNNCellBase)) for module in stage.model.modules()),
    )


def _pretrained(assembled: Assembled) -> list[nn.Parameter]:
    """Parameters of the main model that were trained before, by whoever published it."""
    model = assembled.spec.main_model()
    if model.name is None or model.weights == "fresh":
        return []
    inner = assembled.base.backbone if isinstance(assembled.base, Graft) else assembled.base
    return [p for p in inner.parameters() if p.ndim > 0]
