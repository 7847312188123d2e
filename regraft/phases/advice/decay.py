"""Which weights a recipe lets decay, and which not."""

from __future__ import annotations

from regraft.core import Recipe
from regraft.optim.optimizers import Optimizer

SHOWN = 6  # names that are listed


def decaying(recipe: Recipe, optimizer: Optimizer) -> list[str]:
    """A sentence that lists what does not decay in the first stage: vectors, such as biases and gains; none without decay."""
    if not optimizer.weight_decay or not recipe.stages:
        return []
    stage = recipe.stages[0]
    trained = {
        name: parameter
        for name, parameter in stage.model.named_parameters()
        if (parameter.requires_grad if stage.trains is None else name in stage.trains)
    }
    spared = [name for name, parameter in trained.items() if parameter.ndim < 2]
    more = f" and {len(spared) - SHOWN} more" if len(spared) > SHOWN else ""
    return [
        f"weight decay {optimizer.weight_decay:g} on {len(trained) - len(spared)} of {len(trained)} trained tensors; not on "
        f"biases and the gains of norms: {', '.join(spared[:SHOWN]) or 'there are none'}{more}"
    ]
