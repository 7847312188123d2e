"""Adaptive backpropagation: a backward pass goes only to the tensors whose training is worth its price."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from regraft.core.descent import OneUpdate, skipped
from regraft.core.flops import counted
from regraft.core.forward import forward, inputs_of
from regraft.core.modes import eval_mode
from regraft.core.protocols import LossFn, NamedParams, State, Update, UpdateBuilder, UpdateWrapper
from regraft.core.stage import Recipe, Stage, each_stage
from regraft.core.technique import Technique
from regraft.core.values import Batch, Clock, Loss
from regraft.errors import ConfigError, Conflict

GRAIN = 10_000  # parts of the budget in which costs are counted when tensors are chosen
LOOK = 8  # examples that FLOPs are counted on: only their shares matter
SEEN = 8  # steps, at the end of a weighing, whose contributions are added up
TASKS = ("support_", "query_")  # roles whose columns are (T, M, ...): tasks of examples


# ---- what a tensor costs


@dataclass(frozen=True, kw_only=True)
class Costs:
    """FLOPs of a step of a network, as far as they depend on which of K tensors train."""

    forward: float
    whole: float  # of a step that trains all the network has
    weight: np.ndarray  # (K,) of the gradient of each tensor
    reach: np.ndarray  # (K,) of the gradients of activations, from the loss down to where the tensor is used

    def of(self, chosen: np.ndarray) -> float:
        """FLOPs of a step that trains the tensors chosen, (K,) bool."""
        return self.forward + float(self.weight[chosen].sum() + self.reach[chosen].max(initial=0.0))


@dataclass(frozen=True)
class Work:
    """FLOPs of a forward pass."""

    products: float = 0.0  # with matrices, weights or not
    attention: float = 0.0  # within kernels that compute the scores again in the backward pass


class Tape:
    """The FLOPs of a forward pass in the order they were spent, in stretches of the innermost module with own parameters."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.stretches: list[tuple[nn.Module, Work]] = []
        self.entered: dict[nn.Module, int] = {model: 0}  # module -> its first stretch
        self.containers: set[nn.Module] = {model}  # others were called within them
        self._inside, self._total = [model], Work()

    def move(self, total: Work) -> None:
        """End a stretch when `total` is spent."""
        before, self._total = self._total, total
        stretch = Work(total.products - before.products, total.attention - before.attention)
        self.stretches.append((self._inside[-1], stretch))

    def enter(self, module: nn.Module, total: Work) -> None:
        """A module is called."""
        self.move(total)
        self.containers.add(self._inside[-1])
        self.entered.setdefault(module, len(self.stretches))
        self._inside.append(module)

    def leave(self, total: Work) -> None:
        """The module called last is done."""
        self.move(total)
        self._inside.pop()

    def costs(self, tensors: Sequence[Tensor]) -> Costs:
        """Costs of some parameters of the model. A matrix costs what its module does, gains and biases nothing.

        The gradient of what enters a module with a matrix costs what its forward pass costs; of what stands between such
        modules twice that, and of attention two and a half times, for its kernel computes the scores again. Where a parameter
        stands within a module that calls others, or holds several matrices, is not known; it counts as used where that module
        begins. A tied tensor is paid for at every place, and reached at the lowest.
        """
        holders = list(self._holders())
        heavy = {(module, p): p.numel() for module, p in holders if p.ndim > 1 and module not in self.containers}
        sizes = Counter[nn.Module]()
        matrices = Counter(module for module, _ in heavy)
        for (module, _), numel in heavy.items():
            sizes[module] += numel
        spent = Counter[nn.Module]()
        for module, work in self.stretches:
            spent[module] += work.products  # type: ignore[assignment]
        passing = np.array(
            [work.products * (1 if module in sizes else 2) + 2.5 * work.attention for module, work in self.stretches]
        )
        above = [*passing[::-1].cumsum()[::-1].tolist(), 0.0]  # from the loss down to the beginning of a stretch
        weight, reach = dict[Tensor, float](), dict[Tensor, float]()
        for module, p in holders:
            share = heavy.get((module, p), 0) / sizes[module] if module in sizes else 0.0
            weight[p] = weight.get(p, 0.0) + share * spent[module]
            known = module not in self.containers and matrices[module] < 2
            reach[p] = max(reach.get(p, 0.0), above[self.entered[module] + known])
        forward = sum(work.products + work.attention for _, work in self.stretches)
        return Costs(
            forward=forward,
            whole=forward + sum(weight.values()) + max(reach.values()),
            weight=np.array([weight[p] for p in tensors]),
            reach=np.array([reach[p] for p in tensors]),
        )

    def _holders(self) -> Generator[tuple[nn.Module, nn.Parameter]]:
        """(module, parameter) for each place a parameter stands at; a module never called stands for the one around it."""
        modules = dict(self.model.named_modules(remove_duplicate=False))
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            owner = name.rpartition(".")[0]
            while modules[owner] not in self.entered:
                owner = owner.rpartition(".")[0]
            yield modules[owner], parameter


@contextmanager
def without_fast_path() -> Generator[None]:
    """Inside the block torch's attention layers run in parts also in eval mode: the fused kernel's FLOPs are not counted."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@torch.no_grad()
def taped(model: nn.Module, batch: Batch) -> Tape:
    """Where the FLOPs of the model's forward pass on a batch go; nothing of the model is changed."""
    tape = Tape(model)
    owners = [part for part in model.modules() if part is not model and any(True for _ in part.parameters(False))]
    with eval_mode(model), without_fast_path(), counted() as counter:

        def enter(module: nn.Module, args: Any) -> None:
            tape.enter(module, _spent(counter))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            tape.leave(_spent(counter))

        handles = [part.register_forward_pre_hook(enter) for part in owners]
        handles += [part.register_forward_hook(leave) for part in owners]
        try:
            forward(model, batch)
        finally:
            for handle in handles:
                handle.remove()
        tape.move(_spent(counter))
    return tape


def _spent(counter: FlopCounterMode) -> Work:
    """What was counted so far."""
    found = counter.get_flop_counts().get("Global", {})
    attention = sum(flops for kernel, flops in found.items() if "attention" in str(kernel))
    return Work(sum(found.values()) - attention, attention)


def first_examples(stage: Stage[Any]) -> Batch:
    """Some examples of the stage's first batch under the keys the model is called on; of tasks, those of the first.

    Raises:
        Conflict: the source does not yield what the model is called on.
    """
    keys = inputs_of(stage.model)
    given = [name for name in stage.source.inputs if name == keys[0] or name.endswith(f"_{keys[0]}")]
    if not given:
        raise Conflict(
            f"AdaptiveBackprop: the model of stage {stage.name!r} reads {keys[0]!r}, but its source yields "
            f"{sorted(stage.source.inputs)}"
        )
    role = given[0].removesuffix(keys[0])
    batch = next(iter(stage.source.batches(stage.model, 0)))
    columns = {key: batch[role + key] for key in keys}
    return {key: (column[0] if role in TASKS else column)[:LOOK] for key, column in columns.items()}


# ---- what is bought


def affordable(importance: np.ndarray, costs: Costs, rho: float) -> np.ndarray:
    """(K,) bool: the tensors of the greatest total importance whose step costs at most `rho` of a whole one.

    A knapsack for each depth down to which the backward pass could go: with the deepest tensor given, the reach is paid for,
    and what is left of the budget buys weight gradients (Huang et al. 2024, tensor selection, by dynamic programming over `GRAIN`
    parts of the budget, prices rounded up). Tensors without importance are left out.
    """
    budget = rho * costs.whole - costs.forward
    chosen = np.zeros(len(importance), dtype=bool)
    grain = max(budget, 1e-9 * costs.whole, 1.0) / GRAIN
    units = np.ceil(costs.weight / grain - 1e-9).astype(np.int64)
    order = np.argsort(costs.reach, kind="stable")  # from the loss down
    worth = np.zeros(GRAIN + 1)  # best importance for at most so many units, of the tensors seen
    taken = np.zeros((len(order), GRAIN + 1), dtype=bool)
    best, best_at, left = 0.0, -1, 0
    for at, tensor in enumerate(order):
        remaining = math.floor((budget - costs.reach[tensor]) / grain + 1e-9)
        if remaining < 0:
            break
        price = int(units[tensor])
        if price <= remaining:
            with_it = np.concatenate([np.full(price, -np.inf), worth[: GRAIN + 1 - price]]) + importance[tensor]
            taken[at] = with_it > worth
            worth = np.maximum(worth, with_it)
        if worth[min(remaining, GRAIN)] > best:
            best, best_at, left = float(worth[min(remaining, GRAIN)]), at, min(remaining, GRAIN)
    for at in range(best_at, -1, -1):
        if taken[at, left]:
            chosen[order[at]] = True
            left -= int(units[order[at]])
    return chosen


@contextmanager
def paused(parameters: Iterable[nn.Parameter]) -> Generator[None]:
    """Inside the block these parameters require no gradient: autograd skips theirs, and all that leads only to them."""
    parameters = list(parameters)
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class AdaptiveUpdate(UpdateWrapper):
    """Trains all tensors for a while to see what each contributes, and then the best affordable ones; period by period.

    Between two steps everything requires gradients as ever, so hooks and other techniques see nothing of it.
    """

    def __init__(self, base: Update, named: NamedParams, costs: Costs, *, rho: float, weigh: int, period: int) -> None:
        """`named` are the K tensors to choose from, in the order of `costs`; what else `base` owns always trains."""
        super().__init__(base)
        self.named, self.costs, self.rho, self.weigh, self.period = dict(named), costs, rho, weigh, period
        self.done = 0
        self.gains = np.zeros(len(self.named))  # of the steps seen in this weighing
        self.chosen: list[str] | None = None  # None: nothing has been found yet, so the next step weighs

    @property
    def weighing(self) -> bool:
        """Is this a step that trains everything, to weigh it?"""
        return self.chosen is None or self.done % self.period < self.weigh

    def gradients(self, loss_fn: LossFn, batch: Batch) -> Loss:
        """Gradients of the tensors that train in this step."""
        if self.weighing:
            return self.base.gradients(loss_fn, batch)
        kept = set(self.chosen or ())
        with paused(p for name, p in self.named.items() if name not in kept):
            return self.base.gradients(loss_fn, batch)

    def apply(self, clock: Clock) -> None:
        """Change the parameters; with the last step of a weighing choose those that train in the next ones."""
        left = self.weigh - self.done % self.period  # steps of this weighing, this one included
        if self.weighing and left <= SEEN:
            before = [p.detach().clone() for p in self.named.values()]
            self.base.apply(clock)
            if not skipped(self.base):
                self.gains += self._gains(before)
            if left <= 1:
                self._choose()
        else:
            self.base.apply(clock)
        self.done += 1

    def _choose(self) -> None:
        """What was seen decides; where nothing contributed anything, as at a rate of 0, the weighing goes on."""
        kept = affordable(np.maximum(self.gains, 0.0), self.costs, self.rho)
        self.chosen = [name for name, keep in zip(self.named, kept, strict=True) if keep] or None
        self.gains = np.zeros(len(self.named))

    @torch.no_grad()
    def _gains(self, before: Sequence[Tensor]) -> np.ndarray:
        """(K,) what the step took off the loss through each tensor, to first order: minus its gradient times its change.

        `before` holds the tensors as they were, and is used up.
        """
        gains = [
            torch.dot(p.grad.flatten().float(), old.sub_(p).flatten().float())
            if p.grad is not None
            else old.new_zeros(())
            for p, old in zip(self.named.values(), before, strict=True)
        ]
        return torch.stack(gains).double().cpu().numpy()  # read from the device at once

    def state_dict(self) -> State:
        """The wrapped update's state, the steps made, what they contributed, and what trains."""
        return {
            "base": self.base.state_dict(), "done": self.done, "gains": self.gains.tolist(), "chosen": self.chosen
        }  # fmt: skip

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        self.base.load_state_dict(state["base"])
        self.done, self.gains, self.chosen = state["done"], np.array(state["gains"]), state["chosen"]


@dataclass(frozen=True)
class Adapting:
    """Builds an update, counts what the tensors of the stage's model cost, and wraps it as an `AdaptiveUpdate`."""

    base: UpdateBuilder
    stage: Stage[Any]  # before a stored prefix takes the place of a part of its model
    spec: AdaptiveBackprop

    def __call__(self, params: NamedParams) -> Update:
        """The update of these parameters.

        Raises:
            ConfigError: the forward pass and the cheapest gradient alone cost more than `rho`.
        """
        mine = set(self.stage.model.parameters())
        named = {name: p for name, p in params.items() if p in mine}
        update = self.base(params)
        if not named:
            return update
        with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
            costs = taped(self.stage.model, first_examples(self.stage)).costs(list(named.values()))
        least = costs.forward + float((costs.weight + costs.reach).min())
        if least > self.spec.rho * costs.whole:
            raise ConfigError(
                f"AdaptiveBackprop.rho: must be at least {math.ceil(100 * least / costs.whole) / 100} for the "
                f"{type(self.stage.model).__name__} of stage {self.stage.name!r}, whose forward pass is "
                f"{costs.forward / costs.whole:.0%} of a step, got {self.spec.rho}"
            )
        period = math.ceil(self.stage.steps / self.spec.rounds)
        weigh = max(1, round(self.spec.weigh * period))
        return AdaptiveUpdate(update, named, costs, rho=self.spec.rho, weigh=weigh, period=period)


class AdaptiveBackprop(Technique):
    """Trains in each step only the tensors that lower the loss most for a share `rho` of the FLOPs of full fine-tuning.

    GreenTrainer: Huang, Yang, Sun, Gao 2024, arXiv:2309.13192. First all tensors train for a while, which shows what each
    contributes: minus its gradient times its change, the paper's I. Then a knapsack over depth and price chooses those that
    train from there on. The paper derives FLOPs for each architecture, we count those of the model; it weighs by a single step
    that it takes back, we by a share of the steps, and keep them: they are the ones in which the lower layers move.
    Techniques that freeze choose first: `rho` is a share of training the whole network.

    Use it when full fine-tuning of a large model would take too long. In all, a stage costs `weigh + rho (1 - weigh)` of it. Not
    when the lowest layers have to move to the end, or before you have tried fewer steps of full fine-tuning, which save as much.

    Attributes:
        rho: FLOPs of a step as a share of one that trains everything; a third is the forward pass, so it must be above 0.34.
        weigh: share of the steps in which everything trains and is weighed, at the beginning of each round.
        rounds: equal parts of a stage, each with a weighing of its own.

    Example:
        ```yaml
        techniques:
          - AdaptiveBackprop: {rho: 0.36, weigh: 0.25}
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"update"})

    rho: float = Field(default=0.5, gt=0.34, le=1.0)
    weigh: float = Field(default=0.1, gt=0, lt=1)
    rounds: int = Field(default=1, ge=1)

    def apply(self, recipe: Recipe) -> Recipe:
        """Wrap the update of every stage."""
        return recipe if self.rho == 1 else each_stage(recipe, self._adapted)

    def _adapted(self, stage: Stage[Any]) -> Stage[Any]:
        if stage.step is not OneUpdate:
            raise Conflict(
                f"AdaptiveBackprop: the step of stage {stage.name!r} makes updates of its own, whose costs are not those of one "
                "forward and one backward pass of the model; drop AdaptiveBackprop"
            )
        return replace(stage, update=Adapting(stage.update, stage, self))
