"""The same network with fresh weights, as for training from scratch."""

from __future__ import annotations

from dataclasses import replace

import torch

from regraft.errors import ModelError
from regraft.models.backbone import Backbone
from regraft.models.networks import rebuilt
from regraft.models.plain import bare


def with_fresh_weights(backbone: Backbone, *, seed: int) -> Backbone:
    """The backbone with all weights drawn anew, by its own rule and from the seed, in place of the pretrained ones.

    Raises:
        ModelError: the network does not say how it is built.
    """
    module = backbone.module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hasattr(module, "config"):
            made = bare(module.config)  # draws from a copy of the generator as it stands
        elif isinstance(getattr(module, "spec", None), dict):
            made = rebuilt(module.spec, seed=seed)  # type: ignore[arg-type]
        else:
            raise ModelError(
                f"models.main.weights: a {type(module).__name__} does not say how it is built, so it cannot begin with fresh "
                "weights; give a `network`"
            )
    state = {name: value for name, value in made.state_dict().items() if name in module.state_dict()}
    module.load_state_dict(state)
    return replace(backbone, licence=None)
