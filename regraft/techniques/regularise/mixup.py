"""MixUp: train on straight lines between pairs of examples and of their labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from regraft.core import Objective, Recipe, Stage, Technique, each_stage
from regraft.core.compile import ROLES
from regraft.core.protocols import Encoded, Source, SourceWrapper
from regraft.core.seeding import mix
from regraft.core.values import Batch, size
from regraft.errors import Conflict
from regraft.losses.supervised import OBJECTIVES, OTHER, SHARE

_STREAM = 0x6D6978  # tells these draws from others with the same seed and step


def mixing(count: int, alpha: float, *, seed: int, step: int) -> tuple[float, np.ndarray]:
    """The share of the first of each pair, drawn from Beta(alpha, alpha), and the partners (N,): of (seed, step) alone."""
    draw = np.random.default_rng(mix(seed, step, _STREAM))
    return float(draw.beta(alpha, alpha)), draw.permutation(count)


def mixed(batch: Batch, share: float, partners: np.ndarray) -> Batch:
    """The batch with every column of numbers at `share` of the example and 1 - `share` of its partner.

    Zhang et al., 2018, arXiv:1710.09412, eq. 1. Class ids `y` stay, beside those of the partners and the share of each row,
    which `losses.supervised.cross_entropy` weighs. Columns of a role, such as `target_x`, are of other examples and stay.
    """
    out = dict(batch)
    for key, value in batch.items():
        if key.startswith(tuple(f"{role}_" for role in ROLES)):
            continue
        partner = value[torch.from_numpy(partners).to(value.device)]
        if value.is_floating_point():
            out[key] = share * value + (1 - share) * partner
        elif key == "y":
            out[OTHER], out[SHARE] = partner, torch.full(value.shape[:1], share, device=value.device)
    return out


class Mixed(SourceWrapper):
    """`base` with the examples of each batch mixed in pairs."""

    def __init__(self, base: Source, *, alpha: float, seed: int) -> None:
        super().__init__(base)
        self.alpha, self.seed = alpha, seed

    @property
    def examples(self) -> Mapping[str, Encoded]:
        """Those of roles alone: a plain example looks new each time."""
        kept = {key for name, key in self.inputs.items() if name.startswith(tuple(f"{role}_" for role in ROLES))}
        return {key: encoded for key, encoded in self.base.examples.items() if key in kept}

    def batches(self, model: nn.Module, start: int = 0, /) -> Iterator[Batch]:
        """The source's batches, mixed.

        Raises:
            Conflict: an input holds no numbers that could be mixed.
        """
        for step, batch in enumerate(self.base.batches(model, start), start):
            _require_numbers(batch, self.inputs)
            share, partners = mixing(size(batch), self.alpha, seed=self.seed, step=step)
            yield mixed(batch, share, partners)


def _require_numbers(batch: Mapping[str, Tensor], inputs: Mapping[str, str]) -> None:
    whole = [name for name in inputs if name in batch and not batch[name].is_floating_point()]
    plain = [name for name in whole if not name.startswith(tuple(f"{role}_" for role in ROLES))]
    if plain:
        raise Conflict(
            f"MixUp mixes pictures, tables and vectors, but the batches hold whole numbers under {', '.join(plain)}, such as "
            "the tokens of a text; drop MixUp, or train on embedded texts"
        )


class MixUp(Technique):
    """Trains on mixtures of two examples, `share` of the one and 1 - `share` of the other, towards both labels in these shares.

    Zhang et al., 2018, arXiv:1710.09412, eq. 1 and section 2: the share is drawn from Beta(alpha, alpha) once for each batch,
    and partners come from the same batch. Draws are a function of (seed, step). For class ids the two cross-entropies are
    weighed, which is the cross-entropy of the mixed label; multi-label targets, numbers and a teacher's logits are mixed.

    Use it when pictures, tables or embedded texts have few or noisy labels and the model is too sure of itself.
    Not when something between two examples means nothing: tokens are refused, as are rollouts and tasks. What is mixed looks
    new each time, so `CachePrefix` is refused beside it.

    Attributes:
        alpha: small values keep most mixtures close to one of the two examples; 0 turns it off.
        seed: decides shares and partners, with the step.

    Example:
        ```yaml
        techniques:
          - MixUp: {alpha: 0.2}
        ```
    """

    alpha: float = Field(default=0.2, ge=0)
    seed: int = 0

    wraps: ClassVar[frozenset[str]] = frozenset({"source", "objective"})
    reads: ClassVar[frozenset[str]] = frozenset({""})

    def apply(self, recipe: Recipe) -> Recipe:
        """Mix the batches of every stage."""
        return recipe if self.alpha == 0 else each_stage(recipe, self._mixing)

    def _mixing(self, stage: Stage[Any]) -> Stage[Any]:
        innermost = _innermost(stage.objective)
        if innermost not in OBJECTIVES.values():
            name = getattr(innermost, "__name__", type(innermost).__name__)
            raise Conflict(
                f"MixUp: the objective of stage {stage.name!r} must be a supervised one, which can weigh two labels, got {name}; "
                "drop MixUp there"
            )
        if "input_ids" in stage.source.inputs:
            raise Conflict(
                f"MixUp mixes pictures, tables and vectors, but stage {stage.name!r} reads the tokens of texts; drop MixUp, or "
                "train on embedded texts"
            )
        return replace(stage, source=Mixed(stage.source, alpha=self.alpha, seed=self.seed))


def _innermost(objective: Objective) -> object:
    """The objective that others are wrapped around."""
    found: object = objective
    while hasattr(found, "base"):
        found = found.base  # pyright: ignore[reportAttributeAccessIssue]
    return found
