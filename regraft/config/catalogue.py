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


def _all(module: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, module)


CATALOGUE: dict[str, dict[str, str]] = {  # family -> class name -> module
    "technique": {
        "ActivationCheckpointing": "regraft.techniques.speed.activation_checkpointing",
        "AdamToSGD": "regraft.techniques.control.adam_to_sgd",
        "Adapter": "regraft.techniques.peft.adapter",
        "AdaptiveBackprop": "regraft.techniques.transfer.adaptive_backprop",
        "AddLayers": "regraft.techniques.transfer.add_layers",
        "AttentionOnly": "regraft.techniques.transfer.train_only",
        "BackTranslation": "regraft.techniques.augment.back_translation",
        "BitFit": "regraft.techniques.transfer.train_only",
        "CachePrefix": "regraft.techniques.transfer.cache_prefix",
        "ChannelsLast": "regraft.techniques.speed.channels_last",
        "ColorJitter": "regraft.techniques.augment.image",
        "Compile": "regraft.techniques.speed.compile",
        "CutMix": "regraft.techniques.regularise.mixup",
        "DANN": "regraft.techniques.domain.dann",
        "Discriminative": "regraft.techniques.transfer.discriminative",
        "Distillation": "regraft.techniques.distil.distillation",
        **_all("regraft.techniques.regularise.dropout", "DropConnect", "DropPath", "Dropout", "SpatialDropout"),
        "EWC": "regraft.techniques.continual.ewc",
        "FFNOnly": "regraft.techniques.transfer.train_only",
        "FisherNorms": "regraft.techniques.transfer.fisher_norms",
        "GAN": "regraft.techniques.generative.gan",
        "GRPO": "regraft.techniques.alignment.grpo",
        "GSAM": "regraft.techniques.regularise.gsam",
        "GroupNorm": "regraft.techniques.stability.group_norm",
        "Guard": "regraft.techniques.reliability.guard",
        "ImageGeometry": "regraft.techniques.augment.image",
        "HypergradientLR": "regraft.techniques.control.hypergradient_lr",
        "InformationBottleneck": "regraft.techniques.regularise.information_bottleneck",
        "Init": "regraft.techniques.stability.init",
        "L0Penalty": "regraft.techniques.regularise.l0_penalty",
        "L1Penalty": "regraft.techniques.regularise.weight_penalty",
        "L2Penalty": "regraft.techniques.regularise.weight_penalty",
        "LastK": "regraft.techniques.transfer.last_k",
        "LoRA": "regraft.techniques.peft.lora",
        "MAML": "regraft.techniques.meta.maml",
        "MixUp": "regraft.techniques.regularise.mixup",
        "NormOnly": "regraft.techniques.transfer.train_only",
        "OrthogonalPenalty": "regraft.techniques.regularise.weight_penalty",
        "PCGrad": "regraft.techniques.control.pcgrad",
        "PTuning": "regraft.techniques.peft.prompt_tuning",
        "Prefetch": "regraft.techniques.speed.prefetch",
        "PrefixTuning": "regraft.techniques.peft.prefix_tuning",
        "PromptTuning": "regraft.techniques.peft.prompt_tuning",
        "QLoRA": "regraft.techniques.peft.qlora",
        "RandAugment": "regraft.techniques.augment.rand_augment",
        "SAM": "regraft.techniques.regularise.sam",
        "SpecAugment": "regraft.techniques.augment.sound",
        "StagedThaw": "regraft.techniques.transfer.staged_thaw",
        "StopWhen": "regraft.techniques.control.stop_when",
        "SynonymReplacement": "regraft.techniques.augment.text",
        "TextEdit": "regraft.techniques.augment.text",
        "TimeStretch": "regraft.techniques.augment.sound",
        "TrainOnly": "regraft.techniques.transfer.train_only",
        "UncertaintyWeighting": "regraft.techniques.control.uncertainty_weighting",
        **_all("regraft.techniques.stability.weight_norm", "SpectralNorm", "WeightNorm"),
        "WeightAverage": "regraft.techniques.regularise.weight_average",
    },
    "loss": {
        **_all("regraft.losses.classification", "CrossEntropy", "Dice", "Focal", "IoU"),
        "NextToken": "regraft.losses.generative",
        **_all("regraft.losses.numbers", "Huber", "ListwiseRank", "MAE", "MSE", "PairwiseRank"),
    },
    "optimizer": {
        **_all("regraft.optim.optimizers", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "RMSprop", "SGD"),
        **_all("regraft.optim.other_optimizers", "Lion", "SOAP", "Shampoo"),
    },
    "schedule": {
        **_all(
            "regraft.optim.schedules", "Constant", "Cosine", "Exponential", "Linear", "Polynomial", "Power", "StepDecay"
        ),
        **_all("regraft.optim.cycles", "Cyclic", "OneCycle", "Sequence", "WarmRestarts"),
        **_all("regraft.optim.plateau", "ReduceLROnPlateau", "RestartOnPlateau"),
    },
    "network": {
        **_all("regraft.models.conv_networks", "Inception", "ResNet", "SqueezeNet", "VGG"),
        **_all("regraft.models.networks", "ConvNet", "GenerativePair", "MLP"),
        **_all("regraft.models.transformer", "Transformer"),
        **_all("regraft.models.wide_deep", "WideDeep"),
    },
    "method": _all("regraft.search.methods", "ASHA", "GP", "Grid", "Hyperband", "PBT", "Random", "TPE"),
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
