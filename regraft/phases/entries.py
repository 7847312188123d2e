"""An entry of `data:` as training sees it: encoded for the main model, with the classes and the scale that all entries share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from regraft.config.recipe import MAIN
from regraft.data.dataset import Schema
from regraft.data.encoded import Encoded
from regraft.data.labels import natural
from regraft.errors import ConfigError
from regraft.phases.materials import Materials, Scale, known_targets

CLASSES = ("binary", "multiclass")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One data set of a recipe.

    `shared` is true where its labels are those of the main model's outputs; another entry, such as the new classes of
    few-shot tasks, keeps classes of its own.
    """

    name: str
    materials: Materials
    scale: Scale = (0.0, 1.0)  # of the main entry's training targets
    own_classes: tuple[str, ...] = ()  # as they are in this data set alone
    shared: bool = True

    @property
    def task(self) -> str:
        """binary, multiclass, multilabel or regression."""
        return self.materials.task

    @property
    def num_outputs(self) -> int:
        """Width of a head for it."""
        return self.materials.num_outputs

    @property
    def drawn(self) -> str:
        """The split that techniques draw from: train, or the only one of a data set without labels."""
        splits = self.materials.dataset.splits
        return next(name for name in ("train", "unlabelled", "test", "valid") if name in splits)

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Shape of one example, without the batch dimension; of networks' inputs, which have one."""
        encoded = self.encoded(self.drawn)
        return tuple(encoded.collate(np.arange(1))[encoded.inputs[0]].shape[1:])

    def has(self, split: str) -> bool:
        """Is there such a split with labels of the main model's classes?"""
        return split in self.materials.dataset.splits and self.labelled(split)

    def labelled(self, split: str) -> bool:
        """Has a row of the split a target that the main model's outputs can be compared with?"""
        return self.shared and bool(known_targets(self.materials.dataset.targets(split)).any())

    def encoded(self, split: str) -> Encoded:
        """The rows with a target, or all rows of a split that has none."""
        materials = self.materials
        if split not in materials.rows_ and not known_targets(materials.dataset.targets(split)).any():
            rows = np.arange(len(materials.dataset.splits[split]), dtype=np.int64)
            limit = materials.limits.get("train" if split == "unlabelled" else split)
            if limit is not None and len(rows) > limit:
                rows = np.sort(np.random.default_rng([materials.seed, 29]).permutation(len(rows))[:limit])
            materials.rows_[split] = rows
        return materials.encoded(split)

    def targets(self, split: str) -> Tensor:
        """Targets of the encoded rows; numbers in standard deviations of the main entry's training targets."""
        raw = self.materials.raw_targets(split)
        if self.task == "regression":
            mean, deviation = self.scale
            raw = ((raw - mean) / deviation).astype(np.float32)
        return torch.from_numpy(raw.copy())


def joined_schema(schemas: Mapping[str, Schema]) -> Schema:
    """The schema of `main` with the task and the classes of all data sets that are trained on.

    The classes are main's where they hold all others; else all of them in natural order, whichever entry is main.

    Raises:
        ConfigError: the tasks differ.
    """
    main = schemas[MAIN]
    for name, schema in schemas.items():
        if schema.task != main.task and not {schema.task, main.task} <= set(CLASSES):
            raise ConfigError(
                f"data.{name}: must have the task of data.main, {main.task}, for stages to train one model, got {schema.task}"
            )
    found = {label for schema in schemas.values() for label in schema.classes}
    if found <= set(main.classes):
        return main
    classes = tuple(sorted(found, key=natural))
    return replace(main, classes=classes, task=main.task if main.task not in CLASSES else "multiclass")
