"""DANN: features from which a classifier cannot tell the labelled domain from the one the model is for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from regraft.core import Batch, Clock, Loss, Objective, Recipe, Source, Stage, Technique, each_stage, forward
from regraft.core.forward import inputs_of, shared_forward
from regraft.core.seeding import mix
from regraft.core.values import size
from regraft.data.sources import Paired
from regraft.errors import Conflict
from regraft.layers.capture import captured_input
from regraft.layers.gradient_reversal import reverse_gradient
from regraft.losses.adversarial import domain_loss, reversal_weight
from regraft.models.heads import head_name, head_of

ROLE = "target"
MASK = "attention_mask"


def side_by_side(source: Tensor, target: Tensor, *, ragged: bool) -> Tensor:
    """Rows of both (N + M, ...); ragged ones, padded to different lengths (N, L, ...), are filled up with zeros.

    Raises:
        Conflict: examples of the two have different shapes.
    """
    if ragged and source.shape[1] != target.shape[1]:
        longest = max(source.shape[1], target.shape[1])
        tail = (0, 0) * (source.ndim - 2)
        source, target = (F.pad(x, (*tail, 0, longest - x.shape[1])) for x in (source, target))
    if source.shape[1:] != target.shape[1:]:
        raise Conflict(
            f"DANN.target: examples of both domains must have one shape, got {tuple(source.shape[1:])} in the stage's source and "
            f"{tuple(target.shape[1:])} in the target; encode both with the same preprocessing"
        )
    return torch.cat([source, target])


def domain_classifier(num_features: int, width: int, seed: int) -> nn.Sequential:
    """A network with one hidden layer from features (N, F) to a domain logit (N, 1)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(seed))
        return nn.Sequential(nn.Linear(num_features, width), nn.ReLU(), nn.Linear(width, 1))


class DomainAdversarial(nn.Module):
    """The base objective on source examples, plus a domain classifier behind a reversed gradient; it trains with the model."""

    def __init__(self, base: Objective, stage: Stage[Any], spec: DANN) -> None:
        super().__init__()
        self.base, self.spec, self.head = base, spec, head_name(stage.model)
        head = head_of(stage.model)
        self.domain = domain_classifier(head.in_features, spec.width, spec.seed).to(head.weight.device)

    def forward(self, model: nn.Module, batch: Batch, clock: Clock) -> Loss:
        """Task loss plus weighted domain loss, from one forward pass over both domains; `domain` in the log is in nats."""
        num, keys = size(batch), inputs_of(model)
        ragged = MASK in keys  # only then does the model know which entries are padding
        both = {key: side_by_side(batch[key], batch[f"{ROLE}_{key}"], ragged=ragged) for key in keys}
        with captured_input(model.get_submodule(self.head)) as seen:
            outputs = forward(model, both)
        features = seen[-1].flatten(1)
        with shared_forward() as tell:
            tell(model, batch, outputs[:num])
            task = self.base(model, batch, clock)
        reversed_ = reverse_gradient(features, reversal_weight(clock.fraction, self.spec.gamma))
        logits = self.domain(reversed_).float().squeeze(-1)
        domain = domain_loss(logits[:num], logits[num:])
        told = ((logits.detach() > 0) == (torch.arange(len(logits), device=logits.device) >= num)).float().mean()
        terms = {**task.terms, "domain": domain.detach(), "domain_accuracy": told}
        return Loss(task.value + self.spec.weight * domain, task.weight, terms)


class DANN(Technique):
    """Adapts a model to unlabelled target data: a domain classifier on its features trains, and its gradient is reversed.

    Ganin et al., 2016, arXiv:1505.07818, eq. 9 and 10, with the schedule of section 5.2.2. Features are what enters the head;
    one forward pass serves both domains, so batch normalisation sees them together.

    Use it when labelled data comes from one place (a benchmark, another camera, last year) and the model will serve another.
    Not when the class shares of both differ much: matching features then maps classes onto each other.

    Attributes:
        target: entry of `data:` with examples of the target domain, whose labels are not read; in Python a source.
        weight: of the domain loss beside the task's; 0 turns it off.
        gamma: how fast the reversed gradient grows from 0 over the stage.
        width: hidden units of the domain classifier.
        seed: decides the domain classifier's first weights.

    Example:
        ```yaml
        data:
          main: {path: benchmark.csv}
          field: {path: unlabelled.csv}
        techniques:
          - DANN: {target: field, weight: 1.0}
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"source", "objective"})
    reads: ClassVar[frozenset[str]] = frozenset({"", ROLE})

    target: str | Source
    weight: float = Field(default=1.0, ge=0)
    gamma: float = Field(default=10.0, gt=0)
    width: int = Field(default=64, ge=1)
    seed: int = 0

    def apply(self, recipe: Recipe) -> Recipe:
        """Pair every stage's source with the target, and add the domain classifier to its objective."""
        target = recipe.find_source(self.target, asked_by="DANN.target")
        return each_stage(recipe, lambda stage: self._paired(stage, target))

    def _paired(self, stage: Stage[Any], target: Source) -> Stage[Any]:
        missing = sorted(set(inputs_of(stage.model)) - target.inputs.keys())
        if missing:
            raise Conflict(
                f"DANN.target: the model of stage {stage.name!r} reads {missing}, but the target yields {sorted(target.inputs)}"
            )
        objective = DomainAdversarial(stage.objective, stage, self) if self.weight > 0 else stage.objective
        return replace(stage, source=Paired(stage.source, target, ROLE), objective=objective)
