"""The default update and step: one optimizer step on the mean loss of a batch.

Precision, accumulation, clipping and the learning-rate schedule live here and nowhere else; so do the two things that can go
wrong in any step, numbers that are not finite and memory that does not suffice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from regraft.core.finite import Finite, NotFinite, Pass
from regraft.core.micro_batch import Attendant, out_of_memory, randomness, restore_randomness, smaller
from regraft.core.protocols import LossFn, NamedParams, State, Step, Update, layers
from regraft.core.values import Batch, Clock, Loss, mean, size, split
from regraft.errors import ConfigError, RunError

if TYPE_CHECKING:
    from regraft.core.stage import Stage

Precision = Literal["fp32", "bf16"]
MakeOptimizer = Callable[[NamedParams, Mapping[str, float]], torch.optim.Optimizer]  # parameters, learning-rate scales


def constant(clock: Clock) -> float:
    """A schedule that leaves the learning rate as it is."""
    return 1.0


def unchanged(clock: Clock) -> None:
    """A schedule that leaves the momentum as it is."""
    return


class Descent:
    """One optimizer step on the mean loss of a batch, in `micro` slices.

    Gradients are summed as `value * weight` over the slices and divided by the total weight once, so slices that hold
    unequal numbers of tokens give the gradient of the whole batch. `backward(inputs=params)` keeps gradients out of
    parameters this update does not own, which makes two-player games safe without toggling `requires_grad`.

    Nothing is made of gradients or a loss that are not finite: `apply` raises `NotFinite` before it changes anything. Where
    memory runs out, and the run that attends to this update says that batches may be cut, the gradients so far are dropped and
    computed again in slices of half the size, with the same random numbers; `micro` then stays what was found.

    Args:
        params: the parameters to own, by name.
        make: builds the torch optimizer once the learning-rate scales are known.
        micro: number of slices a batch is cut into.
        max_norm: gradients are scaled down to this global L2 norm; None leaves them.
        schedule: factor on every learning rate at a clock.
        momentum: the momentum, or Adam's first beta, at a clock; None leaves it.
        precision: "bf16" runs the loss under autocast; parameters, gradients and optimizer state stay in fp32.

    Raises:
        ConfigError: there is no trainable parameter, or the optimizer has no momentum to schedule.
    """

    def __init__(
        self,
        params: NamedParams,
        make: MakeOptimizer,
        *,
        micro: int = 1,
        max_norm: float | None = None,
        schedule: Callable[[Clock], float] = constant,
        momentum: Callable[[Clock], float | None] = unchanged,
        precision: Precision = "fp32",
    ) -> None:
        if not params:
            raise ConfigError(
                "Descent got no trainable parameter; a technique froze all of them, so let at least the head train"
            )
        self.named = dict(params)
        self.params: Sequence[nn.Parameter] = list(params.values())
        self.make, self.micro, self.max_norm, self.schedule, self.precision = make, micro, max_norm, schedule, precision
        self.momentum = momentum
        self.use(make(self.named, {}))
        self.device, self.finite = self.params[0].device, Finite(self.params)
        self.made_of: Pass | None = None  # what the gradients that wait to be applied were made of
        self.attendant: Attendant | None = None  # set by the run this update is part of

    def use(self, optimizer: torch.optim.Optimizer) -> None:
        """Go on with this optimizer over the same parameters; the rates of its groups are those at factor 1."""
        self.optimizer = optimizer
        self.base_rates: list[float] = [float(group["lr"]) for group in optimizer.param_groups]

    def scale_rates(self, scales: Mapping[str, float]) -> None:
        """Multiply the learning rates of named parameters; names that are not owned are left to other updates."""
        self.use(self.make(self.named, scales))

    def gradients(self, loss_fn: LossFn, batch: Batch) -> Loss:
        """Fill `.grad` of the owned parameters with the gradient of the batch's mean loss, and of no others.

        Raises:
            RunError: memory does not suffice, and the batch must not be cut or holds one example.
        """
        before = randomness(self.device)
        while True:
            try:
                loss = self._accumulated(loss_fn, batch)
                self.made_of = Pass(loss_fn, batch, loss, self.micro, self._mode)
                return loss
            except (RuntimeError, MemoryError) as error:
                if self.attendant is None or not out_of_memory(error):
                    raise
                reason = str(error)
            # here, and not in the handler: what the failed pass held is let go with its frames
            self._drop_gradients()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._cut_smaller(self.attendant, size(batch), reason)
            restore_randomness(self.device, before)

    def _drop_gradients(self) -> None:
        for parameter in self.params:  # what optimizer.zero_grad does, without 10 us for its profiler range
            parameter.grad = None

    def _accumulated(self, loss_fn: LossFn, batch: Batch) -> Loss:
        """`gradients`, in `micro` slices."""
        self._drop_gradients()
        losses: list[Loss] = []
        wanted = [p for p in self.params if p.requires_grad]  # a technique may pass over some of them for a while
        for part in split(batch, self.micro):
            with self._mode():
                loss = loss_fn(part)
            value = loss.value if self.micro == 1 else loss.value * loss.weight
            value.backward(inputs=wanted)  # pyright: ignore[reportUnknownMemberType]
            losses.append(loss.detached())
        if self.micro > 1:
            total = sum(loss.weight for loss in losses)
            grads = [p.grad for p in self.params if p.grad is not None]
            torch._foreach_div_(grads, total)  # type: ignore[attr-defined]
        return mean(losses)

    def _cut_smaller(self, attendant: Attendant, rows: int, reason: str) -> None:
        """Let a slice hold half as many examples from here on, and say so."""
        micro, whole, where = smaller(rows, self.micro), attendant.whole(), attendant.where()
        now = -(-rows // self.micro)
        if micro is None:
            raise RunError(
                f"{where}: memory does not suffice for a single example ({_short(reason)}); make examples smaller (max_length, "
                "image_size), train fewer weights (LoRA, LastK), or use ActivationCheckpointing"
            )
        if whole is not None:
            raise RunError(
                f"{where}: memory does not suffice for {now:,} examples at once ({_short(reason)}), and the batch cannot be cut, "
                f"because {whole}; lower train.batch_size, or set train.micro if slices may differ from the batch"
            )
        self.micro = micro
        attendant.note(
            f"{where}: memory did not suffice for {now:,} examples at once, so batches are cut into {micro} slices from here on; "
            "a step is still one of the whole batch"
        )

    def _mode(self) -> AbstractContextManager[Any]:
        """Autocast for bf16; nothing for fp32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.params[0].device.type, dtype=torch.bfloat16)

    def apply(self, clock: Clock) -> None:
        """Clip, set the learning rates of this clock, and let the optimizer step.

        Raises:
            NotFinite: a gradient or the loss is not finite; nothing has been changed.
        """
        made_of, self.made_of = self.made_of, None
        grads = [p.grad for p in self.params if p.grad is not None]
        if not self._clipped(grads, None if made_of is None else made_of.loss.value):
            raise NotFinite(self.named, made_of)
        factor, momentum = self.schedule(clock), self.momentum(clock)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
            if momentum is not None:
                _set_momentum(group, momentum)
        self.optimizer.step()

    def _clipped(self, grads: Sequence[Tensor], loss: Tensor | None) -> bool:
        """Scale the gradients down to `max_norm`; False where they or the loss are not finite, and are left as they are."""
        if self.max_norm is None:
            return self.finite(grads, loss)
        norm = nn.utils.get_total_norm(grads)  # which is not finite where any gradient is not
        if not math.isfinite(float(norm if loss is None else torch.add(norm, loss, alpha=0))):  # 0 * nan is nan
            return False
        nn.utils.clip_grads_with_norm_(self.params, self.max_norm, norm)
        return True

    def __call__(self, loss_fn: LossFn, batch: Batch, clock: Clock) -> Loss:
        """`gradients`, then `apply`."""
        loss = self.gradients(loss_fn, batch)
        self.apply(clock)
        return loss

    def adopt(self, previous: Update) -> None:
        """Copy the optimizer state of every parameter that an earlier Descent of the same kind of optimizer owned too.

        The number of slices that memory suffices for is taken over as well.
        """
        if not isinstance(previous, Descent):
            return
        self.micro = max(self.micro, previous.micro)  # memory will not suffice here either
        if type(previous.optimizer) is not type(self.optimizer):
            return
        for name, parameter in self.named.items():
            earlier = previous.named.get(name)
            if earlier is not None and earlier in previous.optimizer.state:
                self.optimizer.state[parameter] = _copied(previous.optimizer.state[earlier])

    def state_dict(self) -> State:
        """Optimizer state by parameter name, what the optimizer keeps in its groups, and how many slices a batch is cut into."""
        state = {name: dict(self.optimizer.state[p]) for name, p in self.named.items() if p in self.optimizer.state}
        groups = [
            {key: value for key, value in group.items() if key != "params"} for group in self.optimizer.param_groups
        ]
        return {"state": state, "groups": groups, "micro": self.micro}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave, by parameter name; parameters it does not name have no state then."""
        self.optimizer.state.clear()
        if state.get("micro", 1) > self.micro:
            self.micro = int(state["micro"])
            if self.attendant is not None:
                self.attendant.remind(f"batches are cut into {self.micro} slices, as memory had called for before")
        for name, values in state["state"].items():
            self.optimizer.state[self.named[name]] = _copied(values)
        for group, saved in zip(self.optimizer.param_groups, state["groups"], strict=True):
            group.update({key: _like(group.get(key), value) for key, value in saved.items()})

    def describe(self) -> str:
        """`Descent(AdamW)` with what differs from the defaults."""
        extras = [f"micro={self.micro}"] * (self.micro > 1) + [self.precision] * (self.precision != "fp32")
        return f"Descent({', '.join([type(self.optimizer).__name__, *extras])})"


def _set_momentum(group: dict[str, Any], momentum: float) -> None:
    if "betas" in group:
        group["betas"] = (momentum, *group["betas"][1:])
    elif "momentum" in group:
        group["momentum"] = momentum
    else:
        raise ConfigError(
            "the schedule moves the momentum, but the optimizer has none; take SGD, RMSprop or one of Adam's family, or "
            "`low_momentum: null`"
        )


def descents(step: Step) -> list[Descent]:
    """Every Descent that a step makes use of, below what wraps it."""
    return [inner for update in step.updates.values() for inner in layers(update) if isinstance(inner, Descent)]


def _short(reason: str) -> str:
    """The first sentence of an allocator's message."""
    return reason.strip().splitlines()[0][:120].rstrip(" .") if reason.strip() else "no memory"


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in values.items()}


def _like(current: object, saved: object) -> object:
    """JSON has no tuples: give a list back as the tuple it was (Adam's betas)."""
    return tuple(saved) if isinstance(current, tuple) and isinstance(saved, list) else saved  # type: ignore[arg-type]


class OneUpdate:
    """The default step: one update of everything trainable on the stage's objective."""

    def __init__(self, stage: Stage[Any]) -> None:
        self.stage = stage
        self.updates: Mapping[str, Update] = {"all": stage.update(stage.trainable())}

    def __call__(self, batch: Batch, clock: Clock) -> Loss:
        """One update of everything trainable."""
        model, objective = self.stage.model, self.stage.objective
        return self.updates["all"](lambda part: objective(model, part, clock), batch, clock)
