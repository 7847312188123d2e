"""How large the checkpoints of a run will be, known before its first step is paid for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from regraft.core.descent import Descent
from regraft.core.protocols import Update, UpdateWrapper
from regraft.core.run import Run
from regraft.core.snapshot import Snapshot, flattened
from regraft.core.state import run_state
from regraft.errors import DiskError

SIDES = (
    2,
    3,
    5,
    7,
    11,
    13,
)  # of the small tensors that optimizers are tried on; all different, so that a side says which it is


def expected_bytes(run: Run) -> int:
    """Size of a checkpoint of this run once every parameter has been stepped.

    The state as it is now, with the optimizer state that the first step makes. What hooks collect later is not in it.
    """
    values, tensors = flattened(run_state(run))
    for name, update in run.step.updates.items():
        descent = _descent(update)
        missing = {} if descent is None else dict(_missing(descent))
        tensors |= {f"/updates/{name}/state/{path}": tensor for path, tensor in missing.items()}
        values = [values, list(missing)]  # they will be named there as well
    return Snapshot(values, tensors).bytes()


def require_room(folder: Path, *, size: int, copies: int) -> None:
    """Nothing, if `copies` checkpoints of `size` bytes fit on the disk beside those in `folder`, which they will replace.

    Raises:
        DiskError: they do not; the sentence has the figures.
    """
    place = next(path for path in (folder, *folder.parents) if path.exists())
    here = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    free, needed = shutil.disk_usage(place).free, copies * size
    if free + here < needed:
        raise DiskError(
            f"{folder}: {copies} checkpoints of {amount(size)} need {amount(needed)}, but {amount(free + here)} are free there; "
            "make room, or keep fewer of them with checkpoint.keep_last and checkpoint.keep_best"
        )


def amount(size: int) -> str:
    """`2.71 GB`, `27.10 MB` or `2.71 kB`."""
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB")) if size >= u), (1e3, "kB"))
    return f"{size / unit:.2f} {name}"


def _descent(update: Update | UpdateWrapper) -> Descent | None:
    """The update at the bottom of what wraps it, if it has an optimizer."""
    while isinstance(update, UpdateWrapper):
        update = update.base
    return update if isinstance(update, Descent) else None


def _missing(descent: Descent) -> Iterator[tuple[str, Tensor]]:
    """Stand-ins without memory for the state tensors that the first step will make, by path.

    The optimizer is built once more over small tensors with as many dimensions, and stepped.
    """
    fresh = {n: p for n, p in descent.named.items() if p.requires_grad and p not in descent.optimizer.state}
    if not fresh:
        return
    small = {name: nn.Parameter(torch.ones(SIDES[: p.dim()], dtype=p.dtype)) for name, p in fresh.items()}
    optimizer = descent.make(small, {})
    for parameter in small.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in fresh.items():
        sides: dict[int, int] = dict(zip(SIDES, parameter.shape, strict=False))
        state = cast(Mapping[str, object], optimizer.state[small[name]])
        for key, value in state.items():
            if isinstance(value, Tensor):
                shape = [sides.get(side, side) for side in list(value.shape)]
                yield f"{name}/{key}", torch.empty(shape, dtype=value.dtype, device="meta")
