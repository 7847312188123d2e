"""Texts changed before they are tokenised, step by step: a source whose words are a function of (seed, step, example)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from regraft.config.plain_json import NotPlain, plain_json
from regraft.core.compile import nest
from regraft.core.protocols import Encoded, Source, layers
from regraft.core.seeding import mix
from regraft.core.stage import Recipe, Stage, each_stage
from regraft.core.values import Batch
from regraft.data.changed import Changed, is_plain
from regraft.data.text import TextColumns
from regraft.errors import ConfigError, Conflict

LARGEST = 1 << 28  # bytes of a file of synonyms or paraphrases
Encode = Callable[[TextColumns], Batch]  # texts of a batch -> what a model is called on


class Retellable(Encoded, Protocol):
    """Encoded texts that can be changed before they are tokenised."""

    def collate_texts(self, rows: np.ndarray, change: Callable[[TextColumns], TextColumns], /) -> Batch:
        """As `collate`, with `change` applied to the raw texts."""
        ...


class TextChange(Protocol):
    """A change of the texts of a batch."""

    @property
    def seed(self) -> int:
        """Decides the draws, with step and example."""
        ...

    def retell(self, columns: TextColumns, seeds: list[int], encode: Encode, /) -> TextColumns:
        """The texts of M examples changed; `seeds` (M,) are functions of (seed, step, example)."""
        ...


def name_of(change: TextChange) -> str:
    """The technique that a change belongs to."""
    return str(getattr(change, "name", type(change).__name__))


class Retold(Changed):
    """`base` with the texts of each batch changed, one change after the other, and tokenised anew."""

    def __init__(self, base: Source, encoded: Retellable, changes: tuple[TextChange, ...]) -> None:
        super().__init__(base)
        self.texts, self.changes = encoded, changes

    def describe(self) -> str:
        """The changes around the source."""
        inside = nest(self.base)
        for change in self.changes:
            inside = f"{name_of(change)}({inside})"
        return inside

    def changed(self, batch: Batch, step: int) -> Batch:
        """The batch with its inputs made from the changed texts."""
        ids = batch[next(by for key, by in self.inputs.items() if is_plain(key))]
        rows = ids.cpu().numpy()

        def encode(columns: TextColumns) -> Batch:
            return self.texts.collate_texts(rows, lambda _: columns)

        def change(columns: TextColumns) -> TextColumns:
            for one in self.changes:
                columns = one.retell(columns, [mix(one.seed, step, row) for row in rows.tolist()], encode)
            return columns

        return batch | self.texts.collate_texts(rows, change)


def encoded_texts(stage: Stage[Any], *, name: str) -> Retellable:
    """The encoded texts that a stage draws from.

    Raises:
        Conflict: it draws from none that could be read again.
    """
    for layer in layers(stage.source):
        encoded: Any = getattr(layer, "encoded", None)
        if hasattr(encoded, "collate_texts") and any(is_plain(key) for key in stage.source.inputs):
            return encoded
    raise Conflict(
        f"{name} changes texts before they are tokenised, but what stage {stage.name!r} yields "
        f"({', '.join(sorted(stage.source.inputs))}) comes from no texts that can be read again; drop {name}"
    )


def retold(recipe: Recipe, change: Callable[[Stage[Any], Retellable], TextChange], *, name: str) -> Recipe:
    """The recipe with the texts of every stage changed, after the changes that others have put there.

    Args:
        recipe: its stages draw texts.
        change: of a stage with these texts.
        name: of the technique, for errors.

    Raises:
        Conflict: a stage draws no texts.
    """

    def edited(stage: Stage[Any]) -> Stage[Any]:
        texts = encoded_texts(stage, name=name)
        one = change(stage, texts)
        source = stage.source
        if isinstance(source, Retold):
            return replace(stage, source=Retold(source.base, texts, (*source.changes, one)))
        return replace(stage, source=Retold(source, texts, (one,)))

    return each_stage(recipe, edited)


def read_lists(path: str, *, name: str) -> dict[str, tuple[str, ...]]:
    """A JSON file of `{"text": ["another", ...]}` or `{"text": "another"}` as text -> others.

    Args:
        path: the file.
        name: of the field that names it, for errors.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    file = Path(path)
    try:
        if not file.is_file() or file.stat().st_size > LARGEST:
            raise ConfigError(f"{name}: {path} must be a file of at most {LARGEST:,} bytes")
        tree = plain_json(file.read_bytes(), largest=LARGEST)
    except (OSError, NotPlain) as error:
        raise ConfigError(f"{name}: {path} cannot be read as JSON ({error})") from None
    lists = {k: (v,) if isinstance(v, str) else v for k, v in tree.items()} if isinstance(tree, dict) else {}
    sound = all(isinstance(v, list | tuple) and all(isinstance(one, str) for one in v) for v in lists.values())
    if not lists or not sound:
        raise ConfigError(f'{name}: {path} must hold {{"text": ["another", ...]}} for at least one text, and does not')
    return {text: tuple(others) for text, others in lists.items()}
