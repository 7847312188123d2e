"""What half precision is worth here: matrix products, and steps of a recipe, timed in every format that the machine has.

Ratios are measured, never assumed. Published ones are of GPUs with units for these formats.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from regraft.config.recipe import RecipeSpec
from regraft.core.dtypes import CARD
from regraft.core.precision import Precision, computing, supports
from regraft.core.train import advance, start
from regraft.errors import ConfigError
from regraft.phases.build import assemble
from regraft.phases.resolve import resolved

SIDE = 512  # of the matrices
TURNS, SECONDS = 20, 0.3  # of measuring one format, at most
STEPS = 6  # of a recipe in each format; the first is not counted


@dataclass(frozen=True, kw_only=True)
class Product:
    """A product of two square matrices in one format."""

    precision: Precision
    seconds: float | None  # the least measured; None where the device has not got the format
    ratio: float | None  # how many times as fast as fp32


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Steps of a recipe in one precision."""

    precision: Precision
    seconds: float  # of the quickest step
    ratio: float  # how many times as fast as fp32
    saved_bytes: int  # kept for the backward pass of a step
    saved_ratio: float  # of fp32's
    loss: float  # after the last step
    off: float  # from fp32's loss


def card() -> list[dict[str, Any]]:
    """The formats as plain values, a row each."""
    names = ("bits", "largest", "smallest_normal", "smallest", "epsilon", "decimal_digits")
    return [asdict(each) | {name: getattr(each, name) for name in names} for each in CARD]


def products(device: torch.device | None = None, *, side: int = SIDE) -> list[Product]:
    """How long a product of two (side, side) matrices takes in each format."""
    place = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    matrix = torch.randn(side, side, generator=torch.Generator().manual_seed(0)).to(place)
    found: list[Product] = []
    plain = 0.0
    for precision in precisions():
        if not supports(precision, place):
            found.append(Product(precision=precision, seconds=None, ratio=None))
            continue
        with computing(precision, place):
            seconds = least_seconds(lambda: torch.mm(matrix, matrix), place)
        plain = plain or seconds
        found.append(Product(precision=precision, seconds=seconds, ratio=plain / seconds))
    return found


def precisions() -> tuple[Precision, ...]:
    """All that `train.precision` can be, fp32 first."""
    return get_args(Precision)


def least_seconds(compute: Callable[[], object], device: torch.device) -> float:
    """The least time of a computation; whatever else runs on the machine only adds to it."""
    least, begin = float("inf"), time.perf_counter()
    for turn in range(TURNS + 1):
        before = time.perf_counter()
        compute()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        least = min(least, now - before) if turn else least  # the first one warms up
        if turn and now - begin > SECONDS:
            break
    return least


def step_costs(spec: RecipeSpec) -> list[StepCost]:
    """A few steps of a recipe's first stage in each precision, on models of its own with the same data and seed.

    Raises:
        ConfigError: the recipe has no stage, or cannot be assembled.
    """
    if not spec.stages:
        raise ConfigError("stages: a recipe needs one whose steps can be timed, such as [{name: adapt, steps: 500}]")
    spec = resolved(spec)
    stages = tuple(stage.replaced(steps=STEPS) for stage in spec.stages[:1])
    found: list[StepCost] = []
    for precision in precisions():
        made = spec.replaced(stages=stages, train=spec.train.replaced(precision=precision))
        run = start(assemble(made).recipe, seed=spec.seed)
        device = next(iter(run.stage.trainable().values())).device
        if not supports(precision, device):
            continue
        with _saved() as sizes:
            advance(run, 1)
        seconds = min(_timed(lambda run=run: advance(run, 1), device) for _ in range(STEPS - 1))
        loss = float(run.history[-1]["loss"])
        plain = found[0] if found else None
        found.append(StepCost(
            precision=precision, seconds=seconds, ratio=plain.seconds / seconds if plain else 1.0,
            saved_bytes=sum(sizes.values()), saved_ratio=sum(sizes.values()) / plain.saved_bytes if plain else 1.0,
            loss=loss, off=abs(loss - plain.loss) if plain else 0.0,
        ))  # fmt: skip
    return found


def _timed(compute: Callable[[], object], device: torch.device) -> float:
    before = time.perf_counter()
    compute()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - before


@contextmanager
def _saved() -> Generator[dict[int, int]]:
    """Bytes by storage that autograd keeps for backward passes inside the block; weights kept in fp32 are not counted."""
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []  # so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not (tensor.is_leaf and tensor.requires_grad) and storage.data_ptr() not in sizes:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes
