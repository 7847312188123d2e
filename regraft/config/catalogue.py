"""Where every named part of a recipe lives: a line each, so that listing names imports nothing and a recipe can import nothing.

A new technique is one file and one line here. Packages outside regraft add theirs through the entry-point group
`regraft.techniques`, whose names are class names.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

from regraft.config.spec import Named
from regraft.errors import ConfigError, suggest

CATALOGUE: dict[str, dict[str, str]] = {  # family -> class name -> module
    "technique": {
        "ActivationCheckpointing": "regraft.techniques.speed.activation_checkpointing",
        "AdaptiveBackprop": "regraft.techniques.transfer.adaptive_backprop",
        "Adapter": "regraft.techniques.peft.adapter",
        "CachePrefix": "regraft.techniques.transfer.cache_prefix",
        "ChannelsLast": "regraft.techniques.speed.channels_last",
        "Compile": "regraft.techniques.speed.compile",
        "DANN": "regraft.techniques.domain.dann",
        "Discriminative": "regraft.techniques.transfer.discriminative",
        "Distillation": "regraft.techniques.distil.distillation",
        "EWC": "regraft.techniques.continual.ewc",
        "GAN": "regraft.techniques.generative.gan",
        "GRPO": "regraft.techniques.alignment.grpo",
        "Guard": "regraft.techniques.reliability.guard",
        "L1Penalty": "regraft.techniques.regularise.weight_penalty",
        "L2Penalty": "regraft.techniques.regularise.weight_penalty",
        "LastK": "regraft.techniques.transfer.last_k",
        "LoRA": "regraft.techniques.peft.lora",
        "MAML": "regraft.techniques.meta.maml",
        "MixUp": "regraft.techniques.regularise.mixup",
        "NormOnly": "regraft.techniques.peft.norm_only",
        "OrthogonalPenalty": "regraft.techniques.regularise.weight_penalty",
        "Prefetch": "regraft.techniques.speed.prefetch",
        "SAM": "regraft.techniques.regularise.sam",
        "StagedThaw": "regraft.techniques.transfer.staged_thaw",
        "WeightAverage": "regraft.techniques.regularise.weight_average",
    },
    "optimizer": dict.fromkeys(
        ("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "RMSprop", "SGD"), "regraft.optim.optimizers"
    )
    | dict.fromkeys(("Lion", "SOAP", "Shampoo"), "regraft.optim.other_optimizers"),
    "loss": dict.fromkeys(("CrossEntropy", "Dice", "Focal", "IoU"), "regraft.losses.classification")
    | dict.fromkeys(("Huber", "ListwiseRank", "MAE", "MSE", "PairwiseRank"), "regraft.losses.numbers"),
    "schedule": dict.fromkeys(
        ("Constant", "Cosine", "Exponential", "Linear", "Polynomial", "Power", "StepDecay"), "regraft.optim.schedules"
    )
    | dict.fromkeys(("Cyclic", "OneCycle", "Sequence", "WarmRestarts"), "regraft.optim.cycles"),
    "network": dict.fromkeys(("ConvNet", "GenerativePair", "MLP"), "regraft.models.networks")
    | {"WideDeep": "regraft.models.wide_deep"},
}


@cache
def plugins() -> Mapping[str, str]:
    """Techniques of other installed packages: class name -> module."""
    return {point.name: point.module for point in entry_points(group="regraft.techniques")}


def modules(family: str) -> dict[str, str]:
    """Class name -> module of every member of a family, without importing any."""
    extra = dict(plugins()) if family == "technique" else {}
    return CATALOGUE.get(family, {}) | extra


def names(family: str) -> list[str]:
    """Names of a family's members in alphabetical order: the catalogue's, and those that were defined by the caller."""
    return sorted(modules(family).keys() | Named.known.get(family, {}).keys())


def find(family: str, name: str) -> type[Named]:
    """The class called `name` in a family.

    Raises:
        ConfigError: there is none; the sentence suggests the nearest name.
    """
    known = Named.known.setdefault(family, {})
    if name not in known and name in modules(family):
        import_module(modules(family)[name])
    if name not in known:
        raise ConfigError(f"no {family} is called {name!r}{suggest(name, names(family))}")
    return known[name]
