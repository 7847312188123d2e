"""When memory does not suffice for a batch: what is such an error, and which batches must not be cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regraft.core.finite import modules_of
from regraft.core.protocols import layers

if TYPE_CHECKING:
    from regraft.core.stage import Stage

MESSAGES = (  # of RuntimeErrors that mean that memory ran out, in lower case
    "out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "alloc_failed", "bad_alloc",
    "bad allocation",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attendant:
    """Whom an update asks and tells when memory runs out: the run it is part of."""

    where: Callable[[], str]  # "stage 'adapt', step 12"
    whole: Callable[[], str | None]  # why a batch must not be cut, as a clause; None: it may
    note: Callable[[str], None]  # keeps a sentence for the report and the log
    remind: Callable[[str], None]  # keeps one for the report that is in the log already


def out_of_memory(error: BaseException) -> bool:
    """Is it memory that ran out, on any device?"""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error).lower() for message in MESSAGES)


def why_whole(stage: Stage[Any]) -> str | None:
    """Why the gradient of this stage's batch is not that of its slices, as a clause; None where it is.

    Batch normalisation that trains takes its statistics over the batch. An objective that compares the examples of a batch
    with each other says `splittable = False`; what wraps it (as `base`) need not repeat it.
    """
    for objective in layers(stage.objective):
        if not getattr(objective, "splittable", True):
            name = getattr(objective, "__name__", type(objective).__name__)
            return f"the objective {name} compares its examples with each other"
    for name, module in modules_of({"": stage.model, "objective": stage.objective}):
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:  # pyright: ignore[reportPrivateUsage]
            return f"the {type(module).__name__} {name!r} takes its statistics over the whole batch"
    return None


def smaller(rows: int, micro: int) -> int | None:
    """In how many slices a batch of `rows` examples is to be cut so that one holds half as many; None if it holds one already."""
    now = -(-rows // micro)
    return -(-rows // (now // 2)) if now > 1 else None


def randomness(device: torch.device) -> tuple[Tensor, ...]:
    """The state of torch's default generators, of the CPU and of the device."""
    if device.type != "cuda":
        return (torch.default_generator.get_state(),)
    return torch.default_generator.get_state(), torch.cuda.get_rng_state(device)


def restore_randomness(device: torch.device, state: tuple[Tensor, ...]) -> None:
    """Put back what `randomness` gave, so that what is repeated draws the same numbers."""
    torch.default_generator.set_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)
