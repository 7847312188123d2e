"""L0Penalty: each neuron or weight has a gate that can close for good, and every open one costs something."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from regraft.core import Batch, Clock, Hook, Loss, Objective, Recipe, Run, Stage, Technique, each_stage, trainable
from regraft.errors import Conflict
from regraft.layers.bound import Bound
from regraft.layers.hard_concrete import open_probability, sampled_gates, settled_gates
from regraft.models.heads import head_name

GATED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, kw_only=True)
class Group:
    """The parameters that share a row of gates, by name, and the shape of these gates."""

    weight: str
    bias: str | None
    shape: tuple[int, ...]  # of the gates: (out, 1, ...) for rows, that of the weight for single weights
    each: int  # weights behind one gate, the bias included

    def gated(self, params: dict[str, Any], gates: Tensor) -> dict[str, Tensor]:
        """The parameters times their gates, by name."""
        made = {self.weight: params[self.weight] * gates.to(params[self.weight].dtype)}
        if self.bias is not None:
            made[self.bias] = params[self.bias] * gates.flatten().to(params[self.bias].dtype)
        return made


class Gated(nn.Module):
    """`base` of the model with its weights times sampled gates, plus the price of the gates that are open."""

    def __init__(self, base: Objective, groups: Sequence[Group], spec: L0Penalty) -> None:
        super().__init__()
        self.base, self.groups, self.spec = base, tuple(groups), spec
        first = math.log(spec.start / (1 - spec.start)) / spec.speed
        sizes = [math.prod(group.shape) for group in groups]  # as vectors, which do not decay
        self.scaled = nn.ParameterList([nn.Parameter(torch.full((size,), first)) for size in sizes])

    def log_alpha(self, index: int) -> Tensor:
        """Of the gates of a group."""
        return self.spec.speed * self.scaled[index].view(self.groups[index].shape)

    def forward(self, model: nn.Module, batch: Batch, clock: Clock) -> Loss:
        """The loss plus `weight` for each weight that is expected to be open; `open_share` in the log is theirs of all."""
        params, changed = dict(model.named_parameters()), dict[str, Tensor]()
        expected = torch.zeros((), device=self.scaled[0].device)
        for index, group in enumerate(self.groups):
            log_alpha = self.log_alpha(index)
            noise = torch.rand_like(log_alpha).clamp(1e-6, 1 - 1e-6)
            changed |= group.gated(params, sampled_gates(log_alpha, noise))
            expected = expected + group.each * open_probability(log_alpha).sum()
        loss = functional_call(
            Bound(self.base, model), {f"model.{name}": value for name, value in changed.items()}, (batch, clock)
        )
        penalty, share = self.spec.weight * expected, expected.detach() / self.total
        return Loss(loss.value + penalty, loss.weight, {**loss.terms, "l0": penalty.detach(), "open_share": share})

    @property
    def total(self) -> int:
        """How many weights have gates."""
        return sum(group.each * math.prod(group.shape) for group in self.groups)

    @torch.no_grad()
    def settled(self, model: nn.Module) -> dict[str, Tensor]:
        """The gated parameters of the finished network, by name."""
        params, made = dict(model.named_parameters()), dict[str, Tensor]()
        for index, group in enumerate(self.groups):
            made |= group.gated(params, settled_gates(self.log_alpha(index)))
        return made


@dataclass
class Raw:
    """The weights without their gates, while those with them stand in the model."""

    kept: dict[str, Tensor] = field(default_factory=dict)


class ShowGated(Hook):
    """Between steps the hooks behind this one see the weights times their gates; at the end these stay."""

    def __init__(self, objective: Gated, raw: Raw) -> None:
        self.objective, self.raw = objective, raw

    def on_step(self, run: Run, loss: Loss) -> None:
        """Put the gates into the weights."""
        self._fold(run.stage.model)

    def on_end(self, run: Run) -> None:
        """Put them in for good, and say how many weights are 0."""
        self._fold(run.stage.model)
        self.raw.kept.clear()
        params = dict(run.stage.model.named_parameters())
        names = [name for group in self.objective.groups for name in (group.weight, group.bias) if name is not None]
        zeros = sum(int((params[name] == 0).sum()) for name in names)
        run.note(f"L0Penalty: {zeros:,} of {self.objective.total:,} weights with a gate are exactly 0")

    @torch.no_grad()
    def _fold(self, model: nn.Module) -> None:
        params, gated = dict(model.named_parameters()), self.objective.settled(model)
        self.raw.kept = {name: params[name].clone() for name in gated}
        for name, value in gated.items():
            params[name].copy_(value)


class HideGated(Hook):
    """Gives training its weights back, bit for bit."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw

    @torch.no_grad()
    def on_step(self, run: Run, loss: Loss) -> None:
        """After the hooks that looked."""
        params = dict(run.stage.model.named_parameters())
        for name, value in self.raw.kept.items():
            params[name].copy_(value)
        self.raw.kept.clear()


class L0Penalty(Technique):
    """Adds `weight` times the expected number of weights that are not 0 to the loss, and ends with exact zeros.

    Louizos et al., 2018, arXiv:1712.01312: every neuron (or weight) of the trained linear layers and convolutions is multiplied
    by a gate that noise opens and closes, with a probability that is learned. Validation sees the gates without noise. When a
    stage ends they are multiplied into the weights, so the finished model is plain, with rows of zeros that can be cut out. The
    log has the expected share of open weights. Each stage has gates of its own: what one has closed the next may open.

    Use it when a network is to become smaller by whole neurons, and which ones is to be learned with its weights.
    Not for a fixed share of zeros, which pruning by size gives at once. Accumulation draws other gates for each slice of a batch.

    Attributes:
        weight: price of an open weight; times the number of weights it should be a fraction of the loss. 0 turns it off.
        unit: "rows" gives a gate to each neuron or channel with its bias, except those of the head; "weights" to each weight.
        start: how far the gates are open at the start; the nearer to 1, the longer it takes to close one.
        speed: how much faster than the weights the gates learn, as a factor on the learning rate of Adam and its like.

    Example:
        ```yaml
        train: {optimizer: {AdamW: {lr: 1.0e-3}}}
        techniques:
          - L0Penalty: {weight: 1.0e-4, unit: rows}
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"objective", "hooks"})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "inner"  # all that looks at the weights sees gated ones

    weight: float = Field(default=1e-4, ge=0)
    unit: Literal["rows", "weights"] = "rows"
    start: float = Field(default=0.9, gt=0, lt=1)
    speed: float = Field(default=10.0, gt=0)

    def apply(self, recipe: Recipe) -> Recipe:
        """Gate the weights of every stage that trains any.

        Raises:
            Conflict: a stage trains no linear layer or convolution that could have gates.
        """
        return recipe if self.weight == 0 else each_stage(recipe, self._gated)

    def _gated(self, stage: Stage[Any]) -> Stage[Any]:
        groups = self._groups(stage)
        if not groups:
            raise Conflict(
                f"L0Penalty: stage {stage.name!r} trains no linear layer or convolution below the head; let more of the model "
                "train, or take unit: weights"
            )
        objective, raw = Gated(stage.objective, groups, self), Raw()
        objective.to(next(stage.model.parameters()).device)
        return replace(stage, objective=objective, hooks=(ShowGated(objective, raw), *stage.hooks, HideGated(raw)))

    def _groups(self, stage: Stage[Any]) -> list[Group]:
        """A group for each layer whose weight trains."""
        trained = frozenset(trainable(stage.model)) if stage.trains is None else stage.trains
        head = head_name(stage.model) if any(isinstance(m, nn.Linear) for m in stage.model.modules()) else None
        found: list[Group] = []
        for name, layer in stage.model.named_modules():
            weight, bias = f"{name}.weight".lstrip("."), f"{name}.bias".lstrip(".")
            if not isinstance(layer, GATED) or weight not in trained or (self.unit == "rows" and name == head):
                continue
            if self.unit == "weights":
                found.append(Group(weight=weight, bias=None, shape=tuple(layer.weight.shape), each=1))
                continue
            rows = (len(layer.weight), *[1] * (layer.weight.ndim - 1))
            own = bias if bias in trained else None
            found.append(Group(weight=weight, bias=own, shape=rows, each=layer.weight[0].numel() + (own is not None)))
        return found
