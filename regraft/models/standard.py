"""The head that transformers puts on a model: the same interface as a graft, and a folder that loads with plain transformers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regraft.errors import ModelError
from regraft.models.backbone import Modality
from regraft.models.causal import is_causal
from regraft.models.graft import put_linear
from regraft.models.heads import folded, head_name
from regraft.models.load import (
    check_kind,
    checked_model,
    config_of,
    example_inputs,
    from_folder,
    licence_of,
    model_class,
    quiet,
)
from regraft.models.safety import check_size

PROBLEMS = {
    "binary": "single_label_classification",
    "multiclass": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}


class StandardHead(nn.Module):
    """A transformers model with its own classification head, called on `inputs`; returns logits (N, C).

    A decoder with its language-model head gives (N, L, V) instead, of the token after each place.

    Attributes:
        inputs: batch keys it is called on.
        whole: the transformers model.
    """

    def __init__(self, whole: nn.Module, *, inputs: Sequence[str], name: str, modality: Modality) -> None:
        super().__init__()
        self.whole = whole
        self.inputs = tuple(inputs)
        self.name = name
        self.modality: Modality = modality
        self.licence: str | None = None
        self.source: str | None = None
        self._head_name = head_name(whole)

    @property
    def model_type(self) -> str:
        """`bert`, `vit`, ..."""
        return str(self.whole.config.model_type)  # type: ignore[union-attr]

    @property
    def head(self) -> nn.Linear:
        """The last linear layer of the transformers model."""
        found = self.whole.get_submodule(self._head_name)
        assert isinstance(found, nn.Linear)
        return found

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits (N, C) of the batch keys `inputs`."""
        return self.whole(**inputs).logits

    def features(self, **inputs: Tensor) -> Tensor:
        """What enters the last linear layer, (N, F)."""
        seen: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            self.whole(**inputs)
        finally:
            handle.remove()
        return seen[-1]

    def set_head(
        self, weight: Tensor, bias: Tensor, *, mean: Tensor | None = None, deviation: Tensor | None = None
    ) -> None:
        """Put in a head fitted on standardised features; the standardisation is folded into it."""
        put_linear(self.head, *folded(weight, bias, mean=mean, deviation=deviation))


def load_standard(
    name: str,
    *,
    modality: Modality,
    num_outputs: int,
    task: str = "multiclass",
    labels: Sequence[str] = (),
    inputs: Sequence[str] | None = None,
    seed: int = 0,
    allow_pickled_weights: bool = False,
) -> StandardHead:
    """A pretrained model with the classification head of transformers, fresh where the shapes differ, drawn from `seed`."""
    import transformers

    if modality == "table":
        raise ModelError("a standard head is for text and image models; a table takes a plain network")
    folder, raw = checked_model(name, allow_pickled_weights=allow_pickled_weights)
    kind = "SequenceClassification" if modality == "text" else "ImageClassification"
    config = config_of(folder)
    check_kind(name, config, modality, standard=True)
    check_size(folder, config, model_class(config))
    config.num_labels = num_outputs
    config.problem_type = PROBLEMS[task]  # type: ignore[assignment]
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        auto_class = getattr(transformers, f"AutoModelFor{kind}")
        whole = from_folder(auto_class, folder, config=config, ignore_mismatched_sizes=True)
    model = StandardHead(
        whole.eval(), inputs=inputs or tuple(example_inputs(config, modality)), name=name, modality=modality
    )
    model.licence, model.source = licence_of(folder, raw), str(folder)
    return model


def load_language_model(name: str, *, allow_pickled_weights: bool = False) -> StandardHead:
    """A pretrained decoder with its output layer, in fp32: logits (N, L, V) of the next token.

    Raises:
        ModelError: the model is not there, not safe to load, or not a decoder of text.
    """
    from transformers import AutoModelForCausalLM

    folder, raw = checked_model(name, allow_pickled_weights=allow_pickled_weights)
    config = config_of(folder)
    check_kind(name, config, "text")
    if not is_causal(config):
        raise ModelError(
            f"{name!r} is a {config.model_type} model, which sees tokens before and behind; give a decoder such as GPT-2 or Llama"
        )
    check_size(folder, config, model_class(config))
    config.use_cache = False
    with quiet():
        whole = from_folder(AutoModelForCausalLM, folder, config=config)
    model = StandardHead(whole.eval(), inputs=tuple(example_inputs(config, "text")), name=name, modality="text")
    model.licence, model.source = licence_of(folder, raw), str(folder)
    return model
