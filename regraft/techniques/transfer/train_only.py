"""Partial fine-tuning by kind: attention, feed-forward layers, normalisation layers, biases, or what a pattern names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, model_validator
from torch import nn

from regraft.core.protocols import Hook
from regraft.core.run import Run
from regraft.core.stage import Recipe, Stage, each_stage
from regraft.core.technique import Technique
from regraft.errors import ConfigError, suggest
from regraft.models.anatomy import (
    Kind,
    bias_parameters,
    block_kinds,
    embedding_parameters,
    norm_parameters,
)
from regraft.models.example import run_once
from regraft.models.freeze import KeepStatistics
from regraft.models.parts import chosen, parts_of

WORDS = {
    "attention": "attention",
    "ffn": "feed-forward layers",
    "norm": "normalisation layers",
    "bias": "biases",
    "embeddings": "embeddings",
}


def names_of(kind: Kind, stage: Stage[Any], *, asked_by: str) -> frozenset[str]:
    """Names of a stage model's parameters of one kind, without the head.

    Raises:
        ConfigError: attention or feed-forward layers are asked for, and no part of a block mixes tokens.
    """
    model: nn.Module = stage.model
    if kind == "norm":
        found = frozenset(norm_parameters(model))
    elif kind == "bias":
        found = frozenset(bias_parameters(model))
    elif kind == "embeddings":
        found = frozenset(embedding_parameters(model))
    else:
        instead = "choose another technique"
        kinds = block_kinds(model, lambda m: run_once(m, stage, asked_by=asked_by, instead=instead))
        found = kinds.attention if kind == "attention" else kinds.ffn
        if not found:
            raise ConfigError(
                f"{asked_by}: no part of a block of the {type(model).__name__} in stage {stage.name!r} mixes tokens, so there "
                "is no attention to tell from feed-forward layers; choose another technique"
            )
    return found - frozenset(parts_of(model).head)


def matching(patterns: Iterable[str], model: nn.Module, *, asked_by: str) -> frozenset[str]:
    """Names of the parameters that match one of the patterns (`*` also stands for dots); a ConfigError if one matches none."""
    valid = [name for name, _ in model.named_parameters()]
    found: set[str] = set()
    for pattern in patterns:
        matched = [name for name in valid if fnmatchcase(name, pattern)]
        if not matched:
            nearest = suggest(pattern.strip("*."), valid) or f"; its names are like {valid[0]!r}"
            raise ConfigError(
                f"{asked_by}.parameters: {pattern!r} matches no parameter of the {type(model).__name__}{nearest}"
            )
        found.update(matched)
    return frozenset(found)


class TellShare(Hook):
    """Notes how many parameters train, once, before the first step."""

    def __init__(self, technique: str, what: str) -> None:
        self.technique, self.what = technique, what

    def on_start(self, run: Run) -> None:
        """Count them."""
        if run.clock.step:
            return
        counted = [(p.numel(), p.requires_grad) for p in run.stage.model.parameters()]
        total, train = sum(size for size, _ in counted), sum(size for size, trains in counted if trains)
        run.note(
            f"{self.technique} trains {train:,} of {total:,} parameters ({100 * train / max(total, 1):.2f} %): "
            f"{self.what} and the head"
        )


class Partial(Technique):
    """Trains some kinds of parameters and the head: what the techniques of this file have in common."""

    family: ClassVar[str] = "technique"
    provides: ClassVar[frozenset[str]] = frozenset({"trains"})
    wraps: ClassVar[frozenset[str]] = frozenset({"hooks"})

    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that train."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it trains")

    def patterns(self) -> tuple[str, ...]:
        """Patterns of names of what trains besides."""
        return ()

    def apply(self, recipe: Recipe) -> Recipe:
        """Every stage trains what is chosen, and the head."""
        return each_stage(recipe, self._restricted)

    def _restricted(self, stage: Stage[Any]) -> Stage[Any]:
        by = type(self).__name__
        found = {kind: names_of(kind, stage, asked_by=by) for kind in self.kinds()}
        names = matching(self.patterns(), stage.model, asked_by=by).union(*found.values())
        there = [WORDS[kind] for kind, own in found.items() if own or not names]
        what = " and ".join([*there, *self.patterns()])
        wanted = chosen(stage, names, asked_by=by, what=what)
        head = chosen(stage, parts_of(stage.model).head, asked_by=by, what="head")
        hooks = (*stage.hooks, KeepStatistics(), TellShare(by, what))
        return replace(stage, trains=wanted | head, hooks=hooks)


def _listed(value: object) -> object:
    """One name or a list of names -> a tuple of names."""
    return (value,) if isinstance(value, str) else value


class TrainOnly(Partial):
    """Trains the parameters of some kinds, or with some names, and the head; all else stays as it was, bit for bit.

    Touvron et al. 2022, arXiv:2203.09795 (attention alone, on vision transformers); Ye et al. 2023, arXiv:2312.15681 (attention
    or feed-forward layers alone). Attention is what mixes tokens in a block, found by a backward pass through an example and
    not by names; feed-forward is what else of a block has matrices. Running statistics stay at their pretrained values.

    Use it when a part of the network is known to be the one that must move (`regraft layers` measures which), or to halve the
    optimizer's memory at about the quality of full fine-tuning. Not when the whole network fits and the data are many.

    Attributes:
        kind: one or more of attention, ffn, norm, bias, embeddings.
        parameters: patterns of parameter names such as "*.query.*"; `*` stands for any characters, dots too.

    Example:
        ```yaml
        techniques:
          - TrainOnly: {kind: [norm, embeddings], parameters: ["*layer.5.*"]}
        ```
    """

    kind: Annotated[tuple[Kind, ...], BeforeValidator(_listed)] = ()
    parameters: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()

    @model_validator(mode="after")
    def _says_something(self) -> TrainOnly:
        if not self.kind and not self.parameters:
            raise ConfigError(
                "TrainOnly: give a `kind` or `parameters` that train besides the head; for the head alone: LastK"
            )
        return self

    def kinds(self) -> tuple[Kind, ...]:
        """As asked for."""
        return self.kind

    def patterns(self) -> tuple[str, ...]:
        """As asked for."""
        return self.parameters

    def _restricted(self, stage: Stage[Any]) -> Stage[Any]:
        for kind in self.kind:
            if not names_of(kind, stage, asked_by="TrainOnly"):
                raise ConfigError(
                    f"TrainOnly.kind: the {type(stage.model).__name__} in stage {stage.name!r} has no {WORDS[kind]} to train; "
                    f"leave {kind} out"
                )
        return super()._restricted(stage)


class AttentionOnly(Partial):
    """Trains the attention of every block and the head: about a third of a transformer's weights.

    Touvron et al. 2022, arXiv:2203.09795, section 4: on vision transformers as good as full fine-tuning, for less memory, and
    better where the data are few. The same as `TrainOnly: {kind: attention}`.

    Use it when one transformer serves several data sets, or gradients and optimizer state of all weights do not fit.
    Not for networks without attention, and not when there are some hundred examples: NormOnly or LoRA train fewer weights.

    Example:
        ```yaml
        train: {optimizer: {AdamW: {lr: 0.0001}}}
        techniques:
          - AttentionOnly
        ```
    """

    def kinds(self) -> tuple[Kind, ...]:
        """Attention."""
        return ("attention",)


class FFNOnly(Partial):
    """Trains the feed-forward layers of every block and the head: about two thirds of a transformer's weights.

    Ye et al. 2023, arXiv:2312.15681, section 3; Touvron et al. 2022, arXiv:2203.09795, find it about as good as attention alone
    on small models, for twice the weights. The same as `TrainOnly: {kind: ffn}`.

    Use it when features themselves must change more than where they are gathered from, as with a new vocabulary of patterns.
    Not to save memory: attention alone saves more.

    Example:
        ```yaml
        train: {optimizer: {AdamW: {lr: 0.0001}}}
        techniques:
          - FFNOnly
        ```
    """

    def kinds(self) -> tuple[Kind, ...]:
        """Feed-forward layers."""
        return ("ffn",)


class BitFit(Partial):
    """Trains every bias, those of normalisation layers too, and the head: 0.1 % of a transformer's weights.

    Ben Zaken et al. 2022, arXiv:2106.10199. The same as `TrainOnly: {kind: bias}`.

    Use it when there are few examples or many targets to store. Not for networks without biases, such as Llama: NormOnly
    trains their gains.

    Example:
        ```yaml
        train: {optimizer: {AdamW: {lr: 0.001}}}
        techniques:
          - BitFit
        ```
    """

    def kinds(self) -> tuple[Kind, ...]:
        """Biases."""
        return ("bias",)


class NormOnly(Partial):
    """Trains the gains and shifts of normalisation layers (LayerNorm, RMSNorm, GroupNorm, BatchNorm) and the head.

    Frankle et al. 2021, arXiv:2003.00152 (BatchNorm alone); ValizadehAslani and Liang 2024, arXiv:2403.20284 (LayerNorm).
    Running statistics stay at their pretrained values. The same as `TrainOnly: {kind: norm}`.

    Use it when there are few examples or many targets to store (0.1 % of the weights each), or when contrast, colour or style
    changed rather than content. Not when the target needs features that the network does not have.

    Attributes:
        biases: train all other biases too, as BitFit does.

    Example:
        ```yaml
        techniques:
          - NormOnly: {biases: true}
        ```
    """

    biases: bool = False

    def kinds(self) -> tuple[Kind, ...]:
        """Normalisation layers, and biases where asked for."""
        return ("norm", "bias") if self.biases else ("norm",)
