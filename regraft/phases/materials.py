"""What every phase works on: the data encoded for the model, the targets, and the model itself, made from a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regraft.config.data import DataSpec
from regraft.config.recipe import ModelSpec
from regraft.core.allocator import keep_few_kernels
from regraft.data.cache import cache_folder
from regraft.data.dataset import LANGUAGE, Dataset
from regraft.data.encode import AnyPreprocessor, encode_split, fit_sounds, fit_table
from regraft.data.encoded import Encoded
from regraft.data.images import ImagePreprocessor
from regraft.data.text import TextPreprocessor
from regraft.errors import ConfigError, DataError, ModelError
from regraft.layers.byte_dropout import use_byte_dropout
from regraft.models.attention import use_plain_attention
from regraft.models.backbone import Backbone, plain_backbone
from regraft.models.fresh import with_fresh_weights
from regraft.models.graft import Graft
from regraft.models.licences import require_commercial, stated_by
from regraft.models.load import example_inputs, find_model, load_backbone, require_hash
from regraft.models.networks import Network
from regraft.models.standard import load_language_model, load_standard
from regraft.models.wide_deep import WideDeep
from regraft.phases.choose.fit import Problem

IN_MEMORY = 200_000  # rows of a split that are encoded in memory; larger ones go to memory-mapped files in the cache
Scale = tuple[Any, Any]  # mean and standard deviation of training targets: numbers, or (T,) float64 of several targets


@dataclass
class Materials:
    """A data set prepared for one model. Splits are encoded when they are first asked for."""

    dataset: Dataset
    preprocessor: AnyPreprocessor
    limits: Mapping[str, int | None] = field(default_factory=dict)  # at most this many rows of a split, a seeded sample
    seed: int = 0
    encoded_: dict[str, Encoded] = field(default_factory=dict)
    rows_: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """binary, multiclass, multilabel or regression."""
        return self.dataset.schema.task

    @property
    def problem(self) -> Problem:
        """What a head answers here."""
        return Problem(task=self.task, num_outputs=self.num_outputs)

    @property
    def num_outputs(self) -> int:
        """Width of the head."""
        return self.dataset.schema.num_outputs

    def rows(self, split: str) -> np.ndarray:
        """Indices into the split of the rows that have a target, at most `limits[split]` of them."""
        if split not in self.rows_:
            known = known_targets(self.dataset.targets(split))
            rows = np.flatnonzero(known)
            limit = self.limits.get(split)
            if limit is not None and len(rows) > limit:
                picked = np.random.default_rng([self.seed, 29]).permutation(len(rows))[:limit]
                rows = rows[np.sort(picked)]
            if len(rows) == 0:
                raise DataError(
                    f"the {split} split has no row with a label; check the label column ({', '.join(self.dataset.schema.label)})"
                )
            self.rows_[split] = rows
        return self.rows_[split]

    def encoded(self, split: str) -> Encoded:
        """The rows of a split, ready for the model."""
        if split not in self.encoded_:
            rows = self.rows(split)
            folder = None if len(rows) <= IN_MEMORY else cache_folder() / "encoded"
            self.encoded_[split] = encode_split(self.dataset, split, self.preprocessor, rows=rows, folder=folder)
        return self.encoded_[split]

    def example(self) -> dict[str, Tensor]:
        """The first two training rows as a batch. Only these are encoded: how many rows will be used may not be known yet."""
        rows = self.rows("train")[:2]
        return encode_split(self.dataset, "train", self.preprocessor, rows=rows).collate(np.arange(len(rows)))

    def targets(self, split: str) -> Tensor:
        """Targets of `rows(split)`: class ids (N,), 0/1 (N, C), or numbers (N,) or (N, T) in standard deviations of train."""
        raw = self.raw_targets(split)
        if self.task == "regression":
            mean, deviation = self.scale
            raw = ((raw - mean) / deviation).astype(np.float32)
        return torch.from_numpy(raw.copy())

    def raw_targets(self, split: str) -> np.ndarray:
        """Targets of `rows(split)` in their own unit."""
        return self.dataset.targets(split)[self.rows(split)]

    @property
    def scale(self) -> Scale:
        """Mean and standard deviation of the training targets; (0, 1) unless the task is regression."""
        if self.task != "regression":
            return 0.0, 1.0
        raw = self.raw_targets("train").astype(np.float64)
        if raw.ndim == 2:
            return raw.mean(0), np.maximum(raw.std(0), 1e-12)
        return float(raw.mean()), float(max(raw.std(), 1e-12))

    def row_names(self, split: str) -> np.ndarray:
        """By what the user knows `rows(split)`: 0-based data rows, or file names of images."""
        part = self.dataset.splits[split]
        if self.dataset.schema.modality == "image" and "file" in part.column_names:
            return np.array(part.take("file", self.rows(split)).to_pylist(), dtype=object)
        return part.rows[self.rows(split)]


def known_targets(targets: np.ndarray) -> np.ndarray:
    """(N,) bool: rows that have a target."""
    if targets.dtype.kind == "i":
        return targets >= 0
    return ~np.isnan(targets if targets.ndim == 1 else targets.sum(1))


def prepare(dataset: Dataset, data: DataSpec, model: ModelSpec, module: nn.Module | None = None) -> Materials:
    """The data prepared for a model.

    Args:
        dataset: as `data.read.load` gives it.
        data: its entry in the recipe.
        model: the model's entry in the recipe.
        module: the model itself where it is a Python module rather than a name.

    Raises:
        ConfigError: the model takes another modality than the data has.
    """
    limits = {"train": data.limit, "valid": data.limit_valid, "test": data.limit_test}
    return Materials(dataset, _preprocessor(dataset, model, module), limits=limits, seed=data.seed)


def _preprocessor(dataset: Dataset, model: ModelSpec, module: nn.Module | None) -> AnyPreprocessor:
    schema = dataset.schema
    if schema.modality == "table":
        if model.name is not None:
            raise ModelError(
                f"{model.name!r} is a pretrained model, but the data is a table; leave --model out to train a network"
            )
        return fit_table(dataset)
    if schema.modality == "audio":
        if model.name is not None:
            raise ModelError(
                f"{model.name!r} is a pretrained model, but sounds are heard by a network; give `network: ConvNet`"
            )
        return fit_sounds(dataset)
    if model.name is not None:
        folder = find_model(model.name)
        if schema.modality == "text":
            return TextPreprocessor.from_model(folder, columns=schema.inputs, max_length=model.max_length)
        made = ImagePreprocessor.from_model(folder, column=schema.inputs[0])
        if model.image_size is not None:
            side = (model.image_size, model.image_size)
            made = replace(made, size=side, resize=side)
        return made
    if schema.modality == "text":
        raise ConfigError("text needs a pretrained encoder; name one with --model, such as --model minilm")
    if model.image_size is None:
        raise ConfigError(
            "models.main.image_size: a network of your own needs the side of its images in pixels; "
            "give it with --set models.main.image_size=32"
        )
    channels = _channels(module) if module is not None else 3
    side = (model.image_size, model.image_size)
    return ImagePreprocessor.plain(schema.inputs[0], side, num_channels=channels)


def _channels(module: nn.Module) -> int:
    """Channels that the first convolution of a network takes; 3 where it has none."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            return part.in_channels * part.groups if part.groups == 1 else part.in_channels
    return 3


# ---- models


def readable_model(
    spec: ModelSpec, materials: Materials, module: nn.Module | None = None, *, seed: int = 0
) -> nn.Module:
    """The model with a head that reads its last layer: what the probe reads features from.

    A graft for pretrained networks, transformers' own head where `head: standard` asks for it, and for tables a linear model
    beside a network that starts at zero.

    Raises:
        ModelError: the model cannot be found, loaded, read or packed, or is of another modality.
    """
    schema = materials.dataset.schema
    if schema.modality == "text":
        keep_few_kernels()
    if spec.sha256 is not None:
        if spec.name is None:
            raise ConfigError("models.main.sha256: is of the weights of a model with a `name`; leave it out here")
        require_hash(find_model(spec.name), spec.sha256)
    if spec.commercial and spec.name is not None:
        require_commercial(spec.name, stated_by(find_model(spec.name)))
    if spec.packing and (schema.modality != "text" or spec.head == "standard" or spec.name is None):
        raise ConfigError(
            "models.main.packing: packs the texts of a pretrained model with a grafted head; leave it out here"
        )
    if schema.task == LANGUAGE:
        return _language_model(spec, module)
    example = materials.example()
    if schema.modality == "table" and module is None:
        network = spec.network or WideDeep()
        if not isinstance(network, Network):
            raise ConfigError(f"models.main.network: must be a network, got {type(network).__name__}")
        built = network.build(tuple(example["x"].shape[1:]), materials.num_outputs, seed=seed)
        return (
            built
            if hasattr(built, "set_head")
            else _grafted(plain_backbone(built, example["x"], modality="table"), materials, seed)
        )
    if spec.weights == "fresh" and (spec.name is None or spec.head == "standard"):
        raise ConfigError(
            "models.main.weights: `fresh` is for a model with a `name` and a grafted head; a network is fresh anyway"
        )
    if spec.head == "standard" and spec.name is not None:
        standard = load_standard(
            spec.name,
            modality=schema.modality,
            num_outputs=materials.num_outputs,
            task=materials.task,
            labels=schema.classes,
            seed=seed,
            allow_pickled_weights=spec.allow_pickled_weights,
        )  # type: ignore[arg-type]
        _fit_for_processors(standard.whole, example_inputs(standard.whole.config, standard.modality))
        return standard
    graft = _grafted(backbone_of(spec, materials, module, seed=seed), materials, seed)
    if spec.packing:
        graft.pack()
    return graft


def _language_model(spec: ModelSpec, module: nn.Module | None) -> nn.Module:
    """A decoder with its own output layer, or a module that gives logits (N, L, V) of `input_ids` and `attention_mask`."""
    if module is not None:
        return module
    if spec.name is None or spec.depths or spec.pools:
        raise ConfigError(
            f"models.main: a {LANGUAGE} needs the `name` of a decoder, and neither depths nor pools; leave these out"
        )
    return load_language_model(spec.name, allow_pickled_weights=spec.allow_pickled_weights)


def backbone_of(spec: ModelSpec, materials: Materials, module: nn.Module | None = None, *, seed: int = 0) -> Backbone:
    """The network without a head."""
    modality = materials.dataset.schema.modality
    if spec.name is not None:
        backbone = load_backbone(
            spec.name,
            modality=modality,  # type: ignore[arg-type]
            allow_pickled_weights=spec.allow_pickled_weights,
        )
        if spec.weights == "fresh":
            backbone = with_fresh_weights(backbone, seed=seed)
        _fit_for_processors(backbone.module, backbone.example)
        return backbone
    example = materials.example()["x"]
    if module is None:
        if not isinstance(spec.network, Network):
            raise ConfigError("models.main: give a `name` or a `network`")
        module = spec.network.build(tuple(example.shape[1:]), materials.num_outputs, seed=seed)
    return plain_backbone(module, example, modality=modality)  # type: ignore[arg-type]


def _fit_for_processors(network: nn.Module, example: Mapping[str, Tensor]) -> None:
    """Attention and dropout made for processors, where there is no GPU; both give the numbers of the network's own."""
    if not torch.cuda.is_available():
        use_plain_attention(network, example)
        use_byte_dropout(network)


def _grafted(backbone: Backbone, materials: Materials, seed: int) -> Graft:
    top = backbone.boundaries()[-1]
    return Graft(backbone, depths=(top.depth,), pools=("mean",), num_outputs=materials.num_outputs, seed=seed)


def model_folder(spec: ModelSpec) -> Path | None:
    """Where the pretrained model lies; None for a network."""
    return find_model(spec.name) if spec.name is not None else None


def extra_models(entries: Mapping[str, ModelSpec]) -> Mapping[str, ModelSpec]:
    """The entries of `models:` other than the one that is adapted."""
    return {name: spec for name, spec in entries.items() if name != "main"}
