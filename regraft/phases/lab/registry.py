"""The demonstrations by name, and their computation."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from regraft.errors import ConfigError, suggest
from regraft.phases.lab.parts import Demonstration

DEMONSTRATIONS: Mapping[str, str] = {  # name -> module in this folder, in the order in which they are best read
    "linear-regression": "linear_regression",
    "one-example": "one_example",
    "batch-variance": "batch_variance",
    "vectorisation": "vectorisation",
    "convex": "convex",
    "double-well": "double_well",
    "local-minima": "local_minima",
    "saddle": "saddle",
    "momentum": "momentum",
    "per-parameter": "per_parameter",
    "trajectories": "trajectories",
    "weight-decay": "weight_decay",
    "dtypes": "dtypes",
}


def demonstration(name: str, *, seed: int = 0) -> Demonstration:
    """A demonstration, computed.

    Args:
        name: a key of `DEMONSTRATIONS`.
        seed: of what is drawn at random in it.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in DEMONSTRATIONS:
        raise ConfigError(f"no demonstration is called {name!r}{suggest(name, DEMONSTRATIONS)}")
    return import_module(f"regraft.phases.lab.{DEMONSTRATIONS[name]}").show(seed)


def summaries() -> dict[str, str]:
    """The first line of each demonstration's file, by name, without computing any."""
    found = {n: import_module(f"regraft.phases.lab.{m}").__doc__ or "" for n, m in DEMONSTRATIONS.items()}
    return {name: doc.partition("\n")[0] for name, doc in found.items()}
