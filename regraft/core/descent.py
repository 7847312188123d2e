"""The default update and step: one optimizer step on the mean loss of a batch.

Precision, accumulation, clipping and the learning-rate schedule live here and nowhere else; so do the two things that can go
wrong in any step, numbers that are not finite and memory that does not suffice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regraft.core.clipping import Clipping
from regraft.core.finite import NotFinite, Pass
from regraft.core.loss_scale import LossScale
from regraft.core.micro_batch import Attendant, out_of_memory, randomness, restore_randomness, smaller
from regraft.core.precision import Precision, computing, computing_backward, usable
from regraft.core.protocols import LossFn, NamedParams, State, Step, Update, layers
from regraft.core.ranks import Ranks, own_numbers, share_of, whole_gradient
from regraft.core.remembering import Remembering, remember, seen
from regraft.core.values import Batch, Clock, Loss, mean, size, split, total_weight
from regraft.errors import ConfigError, RunError

if TYPE_CHECKING:
    from regraft.core.stage import Stage

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

    In fp16 the loss is scaled while gradients are computed, and a step whose gradients overflow is skipped, counted and told,
    and the scale halved, see `core.loss_scale`; only one that overflows without scaling is `NotFinite`.

    Args:
        params: the parameters to own, by name.
        make: builds the torch optimizer once the learning-rate scales are known.
        micro: number of slices a batch is cut into.
        max_norm: gradients are scaled down to this global L2 norm; None leaves them.
        max_value: entries of gradients are cut off at this size before that; None leaves them.
        schedule: factor on every learning rate at a clock; one with a memory is told of validation results, see `judged`.
        momentum: the momentum, or Adam's first beta, at a clock; None leaves it.
        precision: "bf16" and "fp16" run the loss under autocast, "tf32" on a GPU's TF32 units; parameters, gradients and
            optimizer state stay in fp32. What the device has not got is computed in fp32, and the first step says so.

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
        max_value: float | None = None,
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
        self.make, self.micro, self.schedule, self.momentum = make, micro, schedule, momentum
        self.use(make(self.named, {}))
        self.device = self.params[0].device
        self.clipping = Clipping(self.params, max_norm=max_norm, max_value=max_value)
        used, self.fallback = usable(precision, self.device)
        self.precision: Precision = used
        self.scaling = LossScale() if self.precision == "fp16" else None
        self.overflow = False  # of a pass since the last step, of scaled gradients and not of its loss
        self.stepped = False  # did the last `apply` change the parameters?
        self.made_of: Pass | None = None  # what the gradients that wait to be applied were made of
        self.attendant: Attendant | None = None  # set by the run this update is part of
        self.ranks: Ranks | None = None  # set where several processes make each step together

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
                self._look_for_overflow(loss)
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
        if self.ranks is None:
            losses = self._backward(loss_fn, split(batch, self.micro))
        else:
            share, counts = share_of(batch, self.ranks)
            with own_numbers(self.ranks, self.device):
                own = self._backward(loss_fn, split(share, self.micro), counts)
            losses = [whole_gradient(self.ranks, self.params, own)]
        grads = [p.grad for p in self.params if p.grad is not None]
        if self._weighted:
            torch._foreach_div_(grads, total_weight(losses))  # type: ignore[attr-defined]
        if self.scaling is not None:
            torch._foreach_mul_(grads, self._unit(losses[0]) / self.scaling.value)  # type: ignore[attr-defined]
        return mean(losses)

    def _backward(self, loss_fn: LossFn, parts: Sequence[Batch], counts: float = 1.0) -> list[Loss]:
        """Add up the gradients of slices of a batch; their losses, each of which counts so many times its weight."""
        losses: list[Loss] = []
        wanted = [p for p in self.params if p.requires_grad]  # a technique may pass over some of them for a while
        for part in parts:
            with self._mode():
                loss = loss_fn(part)
            if counts != 1.0:
                loss = Loss(loss.value, loss.weight * counts, loss.terms)
            losses.append(loss.detached())
            with computing_backward(self.precision):
                self._scaled(loss, losses[0]).backward(inputs=wanted)  # pyright: ignore[reportUnknownMemberType]
        return losses

    @property
    def _weighted(self) -> bool:
        """Are gradients summed over several slices, here or by several processes?"""
        return self.micro > 1 or self.ranks is not None

    def _scaled(self, loss: Loss, first: Loss) -> Tensor:
        """What a slice's gradients are made of: its loss with its weight, and in fp16 the loss times the scale."""
        value = loss.value * loss.weight if self._weighted else loss.value
        return value if self.scaling is None else value.float() * (self.scaling.value / self._unit(first))

    def _unit(self, first: Loss) -> float | Tensor:
        """What weights are counted in where fp16 scales: in those of the first slice, for examples or tokens use up its range."""
        return first.weight if self.micro > 1 and self.ranks is None else 1.0

    def _look_for_overflow(self, loss: Loss) -> None:
        """Note whether scaled gradients overflowed where the loss did not: then it is the scale that is too large."""
        if self.scaling is not None and bool(loss.value.isfinite()):
            grads = [p.grad for p in self.params if p.grad is not None]
            self.overflow = self.overflow or not self.clipping.finite(grads)

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
        return computing(self.precision, self.device)

    def apply(self, clock: Clock) -> None:
        """Clip, set the learning rates of this clock, and let the optimizer step; not where fp16 gradients overflowed.

        Raises:
            NotFinite: a gradient or the loss is not finite; nothing has been changed.
        """
        self._say_fallback(clock)
        self.stepped = not self._skipped()
        if not self.stepped:
            return
        made_of, self.made_of = self.made_of, None
        grads = [p.grad for p in self.params if p.grad is not None]
        if not self.clipping(grads, None if made_of is None else made_of.loss.value):
            raise NotFinite(self.named, made_of)
        factor, momentum = self.schedule(clock), self.momentum(clock)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
            if momentum is not None:
                _set_momentum(group, momentum)
        self.optimizer.step()
        if self.scaling is not None:
            self.scaling.good_step()

    def _skipped(self) -> bool:
        """Is this step not to be made because scaled gradients overflowed? The scale is halved then."""
        overflow, self.overflow = self.overflow, False
        if self.scaling is None:
            return False
        scale = self.scaling.value
        if not overflow or not self.scaling.overflowed():
            return False
        self.made_of = None
        if self.attendant is not None:
            self.attendant.note(
                f"{self.attendant.where()}: gradients overflowed in fp16 at a loss scale of {scale:,g}, so the step was skipped "
                f"and the scale halved ({self.scaling.skipped} skipped so far)"
            )
        return True

    def _say_fallback(self, clock: Clock) -> None:
        if self.fallback is not None and self.attendant is not None and clock.step == 0:
            self.attendant.note(self.fallback)

    def __call__(self, loss_fn: LossFn, batch: Batch, clock: Clock) -> Loss:
        """`gradients`, then `apply`."""
        loss = self.gradients(loss_fn, batch)
        self.apply(clock)
        return loss

    def judged(self, result: Mapping[str, float]) -> None:
        """Tell a schedule that acts on validation results about one."""
        if isinstance(self.schedule, Remembering):
            self.schedule.judged(result)

    def adopt(self, previous: Update) -> None:
        """Copy the optimizer state of every parameter that an earlier Descent of the same kind of optimizer owned too.

        The number of slices that memory suffices for is taken over as well.
        """
        if not isinstance(previous, Descent):
            return
        self.micro = max(self.micro, previous.micro)  # memory will not suffice here either
        remember(previous.schedule, self.schedule)
        if self.scaling is not None and previous.scaling is not None:
            self.scaling.value = previous.scaling.value
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
        scaling = {} if self.scaling is None else {"scaling": self.scaling.state_dict()}
        clipping = self.clipping.state_dict()
        return {"state": state, "groups": groups, "micro": self.micro, "clipping": clipping, **scaling} | seen(
            self.schedule
        )

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave, by parameter name; parameters it does not name have no state then."""
        self.optimizer.state.clear()
        if isinstance(self.schedule, Remembering):
            self.schedule.load_state_dict(state["schedule"])
        if state.get("micro", 1) > self.micro:
            self.micro = int(state["micro"])
            if self.attendant is not None:
                self.attendant.remind(f"batches are cut into {self.micro} slices, as memory had called for before")
        if "clipping" in state:
            self.clipping.load_state_dict(state["clipping"])
        if self.scaling is not None and "scaling" in state:
            self.scaling.load_state_dict(state["scaling"])
        if self.fallback is not None and self.attendant is not None:
            self.attendant.remind(self.fallback)
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


def overflowed(update: Update) -> bool:
    """Have gradients overflowed in fp16, so that the step will be skipped and nothing is to be made of them?"""
    return any(isinstance(inner, Descent) and inner.overflow for inner in layers(update))


def skipped(update: Update) -> bool:
    """Did the last `apply` change nothing, because gradients had overflowed in fp16?"""
    return any(isinstance(inner, Descent) and not inner.stepped for inner in layers(update))


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
