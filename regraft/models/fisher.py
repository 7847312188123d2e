"""Fisher information: how much each parameter matters to the loss, as the mean of squared per-example gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from regraft.core import Batch, Clock, Objective, Stage, trainable
from regraft.core.modes import eval_mode
from regraft.core.values import size
from regraft.layers.bound import Bound

MAX_VALUES = 1 << 26  # gradient values held at once by the vectorised Fisher: 256 MB in fp32


def fisher_by_loop(
    objective: Objective, model: nn.Module, batch: Batch, clock: Clock, names: frozenset[str]
) -> dict[str, Tensor]:
    """Sum over the N examples of the squared gradient of each example's own loss, by parameter name: one backward pass each."""
    params = {name: p for name, p in trainable(model).items() if name in names}
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    for row in range(size(batch)):
        loss = objective(model, {key: value[row : row + 1] for key, value in batch.items()}, clock).value
        grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True, materialize_grads=True)
        for name, g in zip(params, grads, strict=True):
            total[name] += g.square()
    return total


def fisher_by_vmap(
    objective: Objective, model: nn.Module, batch: Batch, clock: Clock, names: frozenset[str]
) -> dict[str, Tensor]:
    """As `fisher_by_loop`, all examples of a slice in one vectorised backward pass.

    Raises:
        RuntimeError: the model or the objective uses what `torch.func.vmap` cannot vectorise.
    """
    bound = Bound(objective, model)
    params = {f"model.{name}": p.detach() for name, p in trainable(model).items() if name in names}

    def loss_of_one(weights: dict[str, Tensor], example: Batch) -> Tensor:
        return functional_call(bound, weights, ({key: value[None] for key, value in example.items()}, clock)).value

    rows = max(1, MAX_VALUES // max(1, sum(p.numel() for p in params.values())))
    per_example = vmap(grad(loss_of_one), in_dims=(None, 0))
    total = {name.removeprefix("model."): torch.zeros_like(p) for name, p in params.items()}
    for at in range(0, size(batch), rows):
        grads = per_example(params, {key: value[at : at + rows] for key, value in batch.items()})
        for name, g in grads.items():
            total[name.removeprefix("model.")] += g.detach().square().sum(0)
    return total


def fisher(
    objective: Objective, model: nn.Module, batch: Batch, clock: Clock, names: frozenset[str]
) -> dict[str, Tensor]:
    """The sum of squared per-example gradients by the vectorised way where the model allows it, else by the loop.

    Squares of the mean gradient are not it: on a converged model they are smaller by about the batch size.
    """
    try:
        return fisher_by_vmap(objective, model, batch, clock, names)
    except (
        RuntimeError
    ):  # vmap cannot trace data-dependent control flow or some kernels; the loop gives the same numbers
        return fisher_by_loop(objective, model, batch, clock, names)


def first_examples(stage: Stage[Any], samples: int) -> Iterator[Batch]:
    """The first `samples` examples that a stage draws, batch by batch; the same ones at each call, and none twice."""
    seen, samples = 0, min([samples, *(len(encoded) for encoded in stage.source.examples.values())])
    with torch.random.fork_rng(devices=[]):
        for batch in stage.source.batches(stage.model):
            part = {key: value[: samples - seen] for key, value in batch.items()}
            seen += size(part)
            yield part
            if seen >= samples:
                return


def mean_fisher(stage: Stage[Any], names: frozenset[str], *, samples: int) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information of a stage's objective, by parameter name, in eval mode.

    The mean over the first `samples` examples of the stage of the squared gradient of each example's own loss.
    """
    total: dict[str, Tensor] = {}
    seen, clock = 0, Clock(0, stage.steps)
    with eval_mode(stage.model):
        for batch in first_examples(stage, samples):
            seen += size(batch)
            for name, value in fisher(stage.objective, stage.model, batch, clock, names).items():
                total[name] = total.get(name, 0) + value
    return {name: value / seen for name, value in total.items()}
