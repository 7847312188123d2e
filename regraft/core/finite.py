"""Numbers that are not finite, noticed before a step is made of them.

A step whose loss or gradients hold nan or inf raises `Trouble` before a parameter is touched; `core.guard` then finds out where
they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from regraft.core.values import Batch, Loss
from regraft.errors import RunError

if TYPE_CHECKING:
    from regraft.core.run import Run

NAMED = 3  # culprits of a kind that a sentence lists
ADVICE = "lower the learning rate, clip gradients (max_norm), or use precision fp32"
Modules = list[tuple[str, nn.Module]]


class Pass(NamedTuple):
    """What the gradients of a step were made of."""

    loss_fn: Callable[[Batch], Loss]
    batch: Batch
    loss: Loss  # without a graph
    micro: int  # slices the batch was cut into
    mode: Callable[[], AbstractContextManager[Any]]  # the precision of the forward pass


class Trouble(RunError):
    """A step that must not be made. Its update has changed nothing: parameters and optimizer state are those before it."""

    def __init__(self, what: str, made_of: Pass | None = None) -> None:
        super().__init__(f"{what}, so the step was not made; {ADVICE}")
        self.what, self.made_of = what, made_of


class NotFinite(Trouble):
    """The loss or a gradient of this step is not a finite number."""

    def __init__(self, named: Mapping[str, nn.Parameter], made_of: Pass | None) -> None:
        super().__init__(what_is_not_finite(named, made_of), made_of)


class Finite:
    """Tells whether gradients and a loss are finite: one kernel, and one number read from the device, however many they are.

    What is asked about has the types and devices of `like`, tensor by tensor in any number.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self.kinds = {(tensor.device, tensor.dtype) for tensor in like}
        self.flags = {  # of each device: 0 while everything was finite, and the factor
            device: (torch.zeros((), device=device), torch.ones((), device=device))
            for device in {device for device, _ in self.kinds}
        }
        self.only = next(iter(self.kinds)) if len(self.kinds) == 1 else None

    def __call__(self, tensors: Sequence[Tensor], loss: Tensor | None = None) -> bool:
        """Are all of them finite? They keep their bits."""
        if self.only is not None and loss is not None and loss.dtype is self.only[1] and loss.device == self.only[0]:
            return self._all_of(self.only, [*tensors, loss])
        groups = [(kind, [t for t in tensors if (t.device, t.dtype) == kind]) for kind in self.kinds]
        fine = [self._all_of(kind, group) for kind, group in groups]
        return all(fine) and (loss is None or bool(loss.isfinite()))

    def _all_of(self, kind: tuple[torch.device, torch.dtype], tensors: Sequence[Tensor]) -> bool:
        """Whether all tensors of one kind are; multiplied by 1, which changes no bit, and with a flag set at nan or inf."""
        found, one = self.flags[kind[0]]
        torch._amp_foreach_non_finite_check_and_unscale_(tensors, found, one)  # pyright: ignore
        if float(found) == 0.0:
            return True
        found.zero_()
        return False


def not_finite(tensors: Iterable[tuple[str, Tensor | None]]) -> list[str]:
    """Names of the tensors of floating-point numbers that hold nan or inf, in their order."""
    floating = [(name, t.detach()) for name, t in tensors if t is not None and t.is_floating_point()]
    if not floating:
        return []
    found = torch.stack([tensor.isfinite().all().cpu() for _, tensor in floating])
    flags = cast(list[bool], found.tolist())  # pyright: ignore[reportUnknownMemberType]
    return [name for (name, _), fine in zip(floating, flags, strict=True) if not fine]


def bad_weights(run: Run) -> list[str]:
    """Names of the stage's weights, frozen or not, that hold nan or inf. Running statistics follow from the batches."""
    model, objective = run.stage.model, run.stage.objective
    own = objective.named_parameters("objective") if isinstance(objective, nn.Module) else ()
    return not_finite([*model.named_parameters(), *own])


def modules_of(parts: Mapping[str, object]) -> list[tuple[str, nn.Module]]:
    """The modules of those parts that are modules, with their names behind the part's."""
    tops = [(prefix, part) for prefix, part in parts.items() if isinstance(part, nn.Module)]
    found = [[*top.named_modules(prefix=prefix)] for prefix, top in tops]  # pyright: ignore
    return [pair for one in cast(list[Modules], found) for pair in one]  # pyright: ignore


def weights_are_finite(run: Run) -> bool:
    """Is all that the stage trains finite? A fast look, without names."""
    weights = [p.detach() for p in run.stage.trainable().values()]
    return Finite(weights)(weights)


def refuse_bad_weights(run: Run) -> None:
    """Raise a RunError where the last step has left a weight that is not finite: it is not to be saved or handed on."""
    if not weights_are_finite(run):
        bad = bad_weights(run)
        raise RunError(
            f"stage {run.stage.name!r}: {listed(bad, 'weight', 'weights')} not finite after step {run.clock.step:,}; "
            f"{ADVICE}, or let the technique Guard roll such steps back"
        )


# ---- in words


def what_is_not_finite(named: Mapping[str, nn.Parameter], made_of: Pass | None) -> str:
    """What is not finite, as a clause: the loss, or the gradient nearest to it."""
    if made_of is not None and not bool(made_of.loss.value.isfinite()):
        return f"the loss became {float(made_of.loss.value)}"
    bad = not_finite((plain(name), p.grad) for name, p in named.items())
    if not bad:
        return "gradients became too large for their type"
    most = f" (and of {len(bad) - 1} others)" if len(bad) > 1 else ""
    return (
        f"the gradient of {bad[-1]!r}{most} is not finite"  # the last is nearest to the loss: the others follow from it
    )


def plain(name: str) -> str:
    """A parameter's name as the model has it."""
    return name.removeprefix("model.")


def listed(names: Sequence[str], one: str, several: str) -> str:
    """`weight 'a' is` or `5 weights ('a', 'b', 'c', ...) are`."""
    shown = ", ".join(repr(name) for name in names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    return f"{one} {shown} is" if len(names) == 1 else f"{len(names)} {several} ({shown}) are"
