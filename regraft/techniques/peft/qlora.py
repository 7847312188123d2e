"""QLoRA: the frozen layers are kept in 4 or 8 bits, and a low-rank change beside each of them trains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from regraft.core.protocols import Hook
from regraft.core.run import Run
from regraft.core.stage import Recipe, Stage
from regraft.core.technique import Technique
from regraft.errors import ConfigError
from regraft.layers.low_rank import find_targets
from regraft.layers.quantised import Bits, QuantisedBase, change_parameters, insert, quantised_layers
from regraft.models.edit import edit_models
from regraft.models.parts import chosen, parts_of
from regraft.models.placement import Placement, is_linear, placed
from regraft.models.trace import holds


@dataclass(frozen=True)
class TellMemory(Hook):
    """Says once a stage is over how much room the quantised layers take."""

    model: nn.Module

    def on_end(self, run: Run) -> None:
        """Megabytes of the weights, now and in 32 bits."""
        layers = list(quantised_layers(self.model).values())
        now, count = sum(layer.num_bytes for layer in layers), sum(x.out_features * x.in_features for x in layers)
        took = f"{now / 1e6:,.2f} MB ({8 * now / count:.2f} bits each), {4 * count / 1e6:,.2f} MB in 32 bits"
        run.note(f"QLoRA: the weights of {len(layers)} linear layers take {took}")


class QLoRA(Technique):
    """Keeps the linear layers of the blocks in 4 or 8 bits, and trains low-rank changes beside them, and the head.

    Dettmers et al. 2023, arXiv:2305.14314: 4-bit NormalFloat in blocks of 64 weights, whose scales are quantised in turn (eq. 5
    and 6); or 8-bit integers with a scale for each output. Weights are made whole one layer at a time, in the forward and in the
    backward pass, on any device and without other libraries. B starts at zero, so the first output is the quantised base's. The
    saved model holds codes and changes; `regraft export RUN --delta` needs the changes alone, since the same base gives the same
    codes.

    Use it when many layers are too large for memory in 32 bits. Not when they fit: making weights whole costs time in every
    step, and rounding them costs accuracy, 4 bits more than 8. While `regraft train` runs, the base it compares with stays
    beside it in 32 bits; from Python, let the unquantised model go.

    Attributes:
        bits: 4, NormalFloat, or 8, integers.
        double: with 4 bits, keep the blocks' scales in 8 bits too: 4.13 bits a weight instead of 4.5.
        rank: of each change; at most the smaller side of the smallest changed layer.
        alpha: the change is scaled by alpha / rank.
        targets: which of the quantised layers get a change: "auto" for all, or patterns of names as in LoRA.
        blocks: whose layers get a change: all, a number for so many of the top ones, or a list of numbers, 1 for the lowest. All
            blocks are quantised.
        dropout: of the input of each change.
        seed: decides the initial A; nothing else does.

    Example:
        ```yaml
        train: {optimizer: {AdamW: {lr: 0.001}}}
        techniques:
          - QLoRA: {bits: 4, rank: 8}
        ```
    """

    provides: ClassVar[frozenset[str]] = frozenset({"model", "trains"})
    wraps: ClassVar[frozenset[str]] = frozenset({"hooks"})

    bits: Bits = 4
    double: bool = True
    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    targets: str | tuple[str, ...] = "auto"
    blocks: Placement = "all"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    seed: int = 0

    def apply(self, recipe: Recipe) -> Recipe:
        """Every model that is trained is quantised once, and every stage trains the changes and the head."""
        return edit_models(
            recipe, lambda model, stage: insert(model, self._description(model), seed=self.seed), self._trained
        )

    def _description(self, model: nn.Module) -> QuantisedBase:
        layers = [name for name in find_targets(model) if is_linear(model.get_submodule(name))]
        if not layers:
            raise ConfigError(
                f"QLoRA: the blocks of the {type(model).__name__} hold no linear layers to quantise; use LoRA"
            )
        wanted = set(layers if self.targets == "auto" else find_targets(model, self.targets))
        kept = [block.name for block in placed(model, self.blocks, asked_by="QLoRA")]
        targets = [name for name in layers if name in wanted and any(holds(block, name) for block in kept)]
        if not targets:
            raise ConfigError(f"QLoRA: no quantised layer is among `targets` and in the blocks {kept}; choose others")
        return QuantisedBase(
            layers=tuple(layers),
            targets=tuple(targets),
            bits=self.bits,
            double=self.double and self.bits == 4,
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
        )

    def _trained(self, stage: Stage[Any], model: nn.Module) -> Stage[Any]:
        head = chosen(stage, parts_of(stage.model).head, asked_by="QLoRA", what="head")
        hooks = (*stage.hooks, TellMemory(model))
        return replace(stage, model=model, trains=head | change_parameters(model), hooks=hooks)
