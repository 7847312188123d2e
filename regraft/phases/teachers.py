"""A model that an earlier run has made, as a part of another recipe: a teacher, most of the time."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from regraft.data.text import TextPreprocessor
from regraft.errors import ConfigError
from regraft.models.save import load_model
from regraft.phases.entries import Entry


def earlier_run(name: str) -> Path | None:
    """The model folder that `name` (a run directory, or the `model` folder in it) means; None for a pretrained model."""
    path = Path(name).expanduser()
    for folder in (path / "model", path):
        if (folder / "model.json").is_file():
            return folder
    return None


def from_earlier_run(folder: Path, name: str, main: Entry) -> nn.Module:
    """The model of an earlier run, in eval mode.

    Raises:
        ConfigError: it answers in other classes, or reads inputs that are prepared in another way.
    """
    model, info = load_model(folder)
    classes = main.materials.dataset.schema.classes
    if tuple(info["labels"]) != classes:
        raise ConfigError(
            f"models.{name}: the model in {folder} must know the {len(classes)} classes of data.main in their order "
            f"({_few(classes)}), got {_few(info['labels'])}"
        )
    ours = json.loads(json.dumps(main.materials.preprocessor.to_json()))
    differ = sorted(
        key for key in ours if key not in ("column", "columns") and ours[key] != info["preprocessing"].get(key)
    )
    if isinstance(main.materials.preprocessor, TextPreprocessor) and _tokenizer(folder) != _tokenizer(
        Path(main.materials.preprocessor.folder)
    ):
        differ.append("tokenizer")
    if differ:
        raise ConfigError(
            f"models.{name}: the model in {folder} must read inputs prepared as the main model's are, and they differ in "
            f"{', '.join(differ)}; train it on the same data with the same input size"
        )
    return model


def _tokenizer(folder: Path) -> object:
    """What a tokenizer does with a text, apart from padding and cutting."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    return {key: content.get(key) for key in ("model", "normalizer", "pre_tokenizer", "post_processor")}


def _few(names: object) -> str:
    shown = [str(name) for name in list(names)[:4]]  # type: ignore[call-overload]
    return ", ".join(shown) + ", ..." * (len(list(names)) > 4)  # type: ignore[call-overload]
