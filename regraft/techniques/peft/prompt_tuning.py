"""Prompt tuning and P-tuning: trained vectors before the words of a text, directly or through an encoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from regraft.core.modes import eval_mode
from regraft.core.stage import Recipe, Stage
from regraft.core.technique import Technique
from regraft.errors import Conflict, ModelError
from regraft.layers.prompt import Encoder, Prompt, find_network, insert, prompt_parameters, require_room, word_embedding
from regraft.models.edit import edit_models
from regraft.models.example import run_once
from regraft.models.parts import chosen, parts_of


def with_prompt(
    recipe: Recipe, *, asked_by: str, tokens: int, encoder: Encoder = "none", hidden: int = 0, seed: int = 0
) -> Recipe:
    """The recipe with a soft prompt before the words of every model it trains, which alone trains, with the head.

    Raises:
        Conflict: a model holds no network of texts that a prompt can be put before, or no room for it.
    """

    def edited(model: nn.Module, stage: Stage[Any]) -> nn.Module:
        try:
            network = find_network(model)
            width = word_embedding(model.get_submodule(network)).weight.shape[1]
            size = hidden or (width if encoder != "none" else 0)
            return _prompted(
                stage, Prompt(network=network, tokens=tokens, encoder=encoder, hidden=size), asked_by, seed
            )
        except ModelError as error:
            raise Conflict(f"{asked_by}: {error}") from None

    def trained(stage: Stage[Any], model: nn.Module) -> Stage[Any]:
        head = chosen(stage, parts_of(stage.model).head, asked_by=asked_by, what="head")
        return replace(stage, model=model, trains=head | prompt_parameters(model))

    return edit_models(recipe, edited, trained)


def _prompted(stage: Stage[Any], given: Prompt, asked_by: str, seed: int) -> nn.Module:
    if getattr(stage.model, "packing", None) is not None:
        raise ModelError(
            "texts that share rows cannot each have a prompt before them; leave `packing` out, or use PrefixTuning"
        )
    for encoded in stage.source.examples.values():
        if "input_ids" in encoded.inputs and len(encoded):
            require_room(stage.model, given, int(encoded.lengths.max()))
    model = insert(stage.model, given, seed=seed)
    with torch.no_grad(), eval_mode(model):  # says what is wrong now rather than at the first step
        run_once(model, stage, asked_by=asked_by, instead="use LoRA")
    return model


class PromptTuning(Technique):
    """Trains vectors of virtual tokens that stand before the words of every text, and the head; all else is frozen.

    Soft prompts, Lester et al. 2021, arXiv:2104.08691, section 2. They take the first positions and are read by every layer like
    words, but nothing is pooled over them. They start at vectors of words drawn from the vocabulary (section 3.2). Encoders
    and decoders of text with a grafted head; not with packing.

    Use it when a very large frozen model serves many targets: some thousand weights each. Not with a small model: in the paper
    it reaches full fine-tuning only from ten billion parameters on. It wants rates ten to a hundred times those of LoRA.

    Attributes:
        tokens: virtual tokens; tokens x width weights, and every text grows by so many.
        seed: decides which words they start at.

    Example:
        ```yaml
        train: {optimizer: {AdamW: {lr: 0.03}}}
        techniques:
          - PromptTuning: {tokens: 20}
        ```
    """

    provides: ClassVar[frozenset[str]] = frozenset({"model", "trains"})

    tokens: int = Field(default=20, ge=1)
    seed: int = 0

    def apply(self, recipe: Recipe) -> Recipe:
        """Every model that is trained gets one prompt, and every stage trains it and the head."""
        return with_prompt(recipe, asked_by="PromptTuning", tokens=self.tokens, seed=self.seed)


class PTuning(Technique):
    """Trains an encoder that makes the vectors of virtual tokens before the words of every text, and the head.

    Liu et al. 2021, arXiv:2103.10385, section 3: the vectors depend on one another through two bidirectional LSTM layers and a
    perceptron, which eases their training; the base is frozen. The virtual tokens stand before the text; the paper also
    puts some between its parts. Encoders and decoders of text with a grafted head; not with packing.

    Use it when prompt tuning moves too slowly or depends on its seed. Not when the number of stored weights counts: the
    encoder has far more than the vectors it makes.

    Attributes:
        tokens: virtual tokens; every text grows by so many.
        encoder: `lstm` as in the paper, or `mlp`, a perceptron with two hidden layers, which is cheaper.
        hidden: width of the encoder; 0 for that of a word vector.
        seed: decides the first weights.

    Example:
        ```yaml
        train: {optimizer: {AdamW: {lr: 0.005}}}
        techniques:
          - PTuning: {tokens: 20, encoder: lstm, hidden: 128}
        ```
    """

    provides: ClassVar[frozenset[str]] = frozenset({"model", "trains"})

    tokens: int = Field(default=20, ge=1)
    encoder: Literal["lstm", "mlp"] = "lstm"
    hidden: int = Field(default=0, ge=0)
    seed: int = 0

    def apply(self, recipe: Recipe) -> Recipe:
        """Every model that is trained gets one prompt with its encoder, and every stage trains them and the head."""
        return with_prompt(
            recipe, asked_by="PTuning", tokens=self.tokens, encoder=self.encoder, hidden=self.hidden, seed=self.seed
        )
