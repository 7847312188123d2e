"""Information bottleneck: the head sees noisy features, and how much they may say costs something."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from regraft.core import Batch, Clock, Loss, Objective, Recipe, Stage, Technique, each_stage
from regraft.losses.divergence import gaussian_divergence
from regraft.models.heads import head_name, head_of


class Noisy(nn.Module):
    """`base` with Gaussian noise on what enters the model's head, and the divergence of that from a standard Gaussian.

    The mean is the feature itself; the log variance is a linear function of the features, with weights that train with the model.
    """

    def __init__(self, base: Objective, model: nn.Module, spec: InformationBottleneck) -> None:
        super().__init__()
        self.base, self.spec, self.head = base, spec, head_name(model)
        head = head_of(model)
        self.log_variance = nn.Linear(head.in_features, head.in_features).to(head.weight.device)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.constant_(self.log_variance.bias, spec.log_variance)

    def forward(self, model: nn.Module, batch: Batch, clock: Clock) -> Loss:
        """The base loss of noisy features plus the weighted divergence; `divergence` in the log is in nats an example."""
        with self._noise_before(model.get_submodule(self.head)) as said:
            loss = self.base(model, batch, clock)
        divergence = torch.cat(said).mean()
        return Loss(
            loss.value + self.spec.weight * divergence, loss.weight, {**loss.terms, "divergence": divergence.detach()}
        )

    @contextmanager
    def _noise_before(self, head: nn.Module) -> Generator[list[Tensor]]:
        """Inside the block the head takes noisy features; the divergences (N,) of its calls are appended to the list."""
        said: list[Tensor] = []

        def disturbed(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            features, *rest = args
            log_variance = self.log_variance(features).float()
            said.append(gaussian_divergence(features.float(), log_variance).reshape(len(features), -1).sum(1))
            noise = torch.exp(0.5 * log_variance) * torch.randn_like(log_variance)
            return (features + noise.to(features.dtype), *rest)

        handle = head.register_forward_pre_hook(disturbed)
        try:
            yield said
        finally:
            handle.remove()


class InformationBottleneck(Technique):
    """Trains the head on features with learned Gaussian noise, and charges for what they still say about the input.

    Alemi et al., 2017, arXiv:1612.00410, eq. 17: the loss plus `weight` times the divergence of the noisy features from a
    standard Gaussian. Here the mean is the feature that enters the head, and the log variance a linear function of it. The noise
    is there in training only; the finished model is the plain one and answers from the mean.

    Use it when a network with a head on few features overfits, or is to be less sure about inputs unlike those it has seen.
    Not on top of a head fitted to frozen features: the divergence pulls the features themselves towards 0, so they must train.
    Accumulation draws other noise for each slice of a batch.

    Attributes:
        weight: of the divergence, beta in the paper; useful ones lie between 1e-5 and 1e-2. 0 turns it off.
        log_variance: of the noise at the start.

    Example:
        ```yaml
        techniques:
          - InformationBottleneck: {weight: 1.0e-3}
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"objective"})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "middle"

    weight: float = Field(default=1e-3, ge=0)
    log_variance: float = Field(default=-4.0, ge=-20, le=5)

    def apply(self, recipe: Recipe) -> Recipe:
        """Add the noise to every stage's objective."""
        return recipe if self.weight == 0 else each_stage(recipe, self._noisy)

    def _noisy(self, stage: Stage[Any]) -> Stage[Any]:
        return replace(stage, objective=Noisy(stage.objective, stage.model, self))
