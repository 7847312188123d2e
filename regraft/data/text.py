"""Text as token ids: tokenised once without padding into flat arrays, padded to the longest of a batch when drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from regraft.errors import ConfigError, DataError, ModelError

DEFAULT_LENGTH = 256  # tokens; longer texts are cut unless the user asks for more
CHUNK = 10_000  # texts handed to the tokenizer at once
PAIRED_TYPES = "token_type_ids"
TextColumns = Mapping[str, list[str]]  # texts by column name


class Origin(Protocol):
    """Where encoded texts came from: they can be read again, changed, and tokenised as they were."""

    @property
    def tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer` of the model."""
        ...

    def texts(self, rows: np.ndarray, /) -> TextColumns:
        """The raw texts of the examples `rows` (M,)."""
        ...

    def encode(self, columns: TextColumns, /) -> EncodedText:
        """Other texts in the same columns, encoded in the same way."""
        ...


@dataclass(frozen=True)
class EncodedText:
    """N tokenised texts, ragged: example i is `ids[offsets[i] : offsets[i + 1]]`."""

    ids: np.ndarray  # (T,) int32, all examples one after the other; may be memory-mapped
    lengths: np.ndarray  # (N,) int64 tokens of each example
    cut: np.ndarray  # (N,) bool: the text was longer than the limit and was cut
    pad_id: int
    types: np.ndarray | None = None  # (T,) int8: 0 for the first text of a pair, 1 for the second
    origin: Origin | None = field(default=None, compare=False)  # of texts that can be read again, see `collate_texts`

    @property
    def inputs(self) -> tuple[str, ...]:
        """Batch keys the model is called on."""
        return ("input_ids", "attention_mask") + (() if self.types is None else (PAIRED_TYPES,))

    @cached_property
    def offsets(self) -> np.ndarray:
        """(N + 1,) int64 where each example starts."""
        return np.append(0, np.cumsum(self.lengths, dtype=np.int64))

    @property
    def num_cut(self) -> int:
        """How many texts were longer than the limit and lost their end."""
        return int(np.count_nonzero(self.cut))

    def __len__(self) -> int:
        return len(self.lengths)

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be stored; chunks of it are joined along the first dimension."""
        arrays = {"ids": self.ids, "lengths": self.lengths, "cut": self.cut}
        return arrays if self.types is None else {**arrays, "types": self.types}

    def collate(self, rows: np.ndarray, /) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and, for pairs, `token_type_ids`: (M, L) int64, padded to the longest of the rows."""
        lengths = self.lengths[rows]
        mask = np.arange(int(lengths.max(initial=0))) < lengths[:, None]
        first = np.cumsum(lengths) - lengths  # where each row starts among the tokens that are drawn
        tokens = np.repeat(self.offsets[rows] - first, lengths) + np.arange(int(lengths.sum()))
        batch = {
            "input_ids": _padded(self.ids[tokens], mask, self.pad_id),
            "attention_mask": torch.from_numpy(mask).long(),
        }
        if self.types is not None:
            batch[PAIRED_TYPES] = _padded(self.types[tokens], mask, 0)
        return batch

    def collate_texts(self, rows: np.ndarray, change: Callable[[TextColumns], TextColumns], /) -> dict[str, Tensor]:
        """As `collate`, with `change` applied to the raw texts before they are tokenised: the place for augmentation.

        Raises:
            ConfigError: the raw texts are not at hand.
        """
        if self.origin is None:
            raise ConfigError(
                "these texts were encoded without their origin, so they cannot be changed; use encode_split"
            )
        return self.origin.encode(change(self.origin.texts(rows))).collate(np.arange(len(rows)))


def _padded(values: np.ndarray, mask: np.ndarray, pad: int) -> Tensor:
    """Values in reading order spread over the places where the mask is true; `pad` elsewhere. (M, L) int64."""
    out = np.full(mask.shape, pad, dtype=np.int64)
    out[mask] = values
    return torch.from_numpy(out)


@dataclass(frozen=True)
class TextPreprocessor:
    """Turns one text column, or two as a pair, into token ids with the fast tokenizer of a model folder."""

    folder: str  # holds the tokenizer files; loaded at first use
    columns: tuple[str, ...]
    max_length: int
    pad_id: int
    paired_types: bool  # the model tells the two texts of a pair apart by token_type_ids

    @classmethod
    def from_model(
        cls, folder: str | Path, *, columns: tuple[str, ...], max_length: int | None = None
    ) -> TextPreprocessor:
        """The preprocessor a model folder calls for.

        Args:
            folder: a transformers folder with a tokenizer and, if it is a model's, `config.json`.
            columns: one text column, or two for pairs.
            max_length: tokens; default the smallest of 256, what the tokenizer states and the model's positions.

        Raises:
            ModelError: no fast tokenizer in the folder.
            ConfigError: not one or two columns, or more tokens than the model has positions.
        """
        if not 1 <= len(columns) <= 2:
            raise ConfigError(
                f"text takes one column, or two for pairs, got {len(columns)}: {', '.join(columns) or 'none'}"
            )
        tokenizer = load_tokenizer(folder)
        config = _config(Path(folder))
        limit = position_limit(tokenizer, config)
        if max_length is not None and not 2 < max_length <= limit:
            raise ConfigError(
                f"max_length must be from 3 to {limit}, the positions of the model in {folder}, got {max_length}"
            )
        types = (
            len(columns) == 2 and PAIRED_TYPES in tokenizer.model_input_names and config.get("type_vocab_size", 2) >= 2
        )
        pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        return cls(str(folder), columns, max_length or min(limit, DEFAULT_LENGTH), int(pad), types)

    @cached_property
    def tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer`, without padding and cutting at `max_length` (the longer text of a pair first)."""
        backend = load_tokenizer(self.folder).backend_tokenizer
        backend.no_padding()
        backend.enable_truncation(max_length=self.max_length, strategy="longest_first")
        return backend

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of everything that decides the ids: vocabulary, rules, limit, columns."""
        rules = (self.tokenizer.to_str(), self.columns, self.max_length, self.pad_id, self.paired_types)
        return hashlib.sha256(repr(rules).encode()).hexdigest()

    def encode(self, columns: Mapping[str, list[object]], /, *, names: list[str] | None = None) -> EncodedText:
        """Raw texts -> token ids. A missing text is the empty text, a number is its decimal notation.

        Args:
            columns: the values by column name.
            names: what to call each row in an error; default `row 0`, ...

        Raises:
            DataError: a column is absent, or a value is no text.
        """
        texts = [self._texts(columns, column, names) for column in self.columns]
        chunks = [
            self._encode_chunk([text[at : at + CHUNK] for text in texts]) for at in range(0, len(texts[0]) or 1, CHUNK)
        ]
        return chunks[0] if len(chunks) == 1 else self.restore(_joined([chunk.arrays() for chunk in chunks]))

    def _texts(self, columns: Mapping[str, list[object]], column: str, names: list[str] | None) -> list[str]:
        if column not in columns:
            raise DataError(f"text column {column!r} is not in the data, which has {', '.join(map(repr, columns))}")
        values = columns[column]
        wrong = next((i for i, v in enumerate(values) if not isinstance(v, str | int | float | None)), None)
        if wrong is not None:
            name = names[wrong] if names else f"row {wrong}"
            raise DataError(f"{name}: column {column!r} must hold text, got {type(values[wrong]).__name__}")
        return [v if isinstance(v, str) else "" if v is None or v != v else str(v) for v in values]

    def _encode_chunk(self, texts: list[list[str]]) -> EncodedText:
        rows = self.tokenizer.encode_batch_fast(texts[0] if len(texts) == 1 else list(zip(*texts, strict=True)))
        ids = [
            row.ids or [self.pad_id] for row in rows
        ]  # an empty text without special tokens still needs one position
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum()))
        cut = np.fromiter((bool(row.overflowing) for row in rows), np.bool_, len(rows))
        types = None
        if self.paired_types:
            types = np.fromiter(chain.from_iterable(row.type_ids or [0] for row in rows), np.int8, len(flat))
        return EncodedText(flat, lengths, cut, self.pad_id, types)

    def restore(self, arrays: Mapping[str, np.ndarray]) -> EncodedText:
        """The examples again from what `EncodedText.arrays` gave."""
        return EncodedText(arrays["ids"], arrays["lengths"], arrays["cut"], self.pad_id, arrays.get("types"))

    def save_files(self, folder: Path) -> None:
        """Write the tokenizer's own files, as transformers reads them."""
        load_tokenizer(self.folder).save_pretrained(str(folder))

    def to_json(self) -> dict[str, object]:
        """Everything but the tokenizer's files, which lie beside it."""
        return {
            "kind": "text",
            "columns": list(self.columns),
            "max_length": self.max_length,
            "pad_id": self.pad_id,
            "paired_types": self.paired_types,
        }

    @classmethod
    def from_json(cls, folder: str | Path, data: Mapping[str, Any]) -> TextPreprocessor:
        """The preprocessor again; `folder` holds the tokenizer's files."""
        return cls(str(folder), tuple(data["columns"]), data["max_length"], data["pad_id"], data["paired_types"])


def _joined(chunks: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def load_tokenizer(folder: str | Path) -> Any:
    """The fast transformers tokenizer of a folder.

    Raises:
        ModelError: there is none, or only a slow one.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"no tokenizer could be loaded from {folder}: {str(error).splitlines()[0]}") from None
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer in {folder} has no fast version; save one with `tokenizer.json` beside the model"
        )
    return tokenizer


def _config(folder: Path) -> dict[str, Any]:
    import json

    file = folder / "config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def position_limit(tokenizer: Any, config: Mapping[str, Any]) -> int:
    """The most tokens a model can take: the smaller of its positions and what its tokenizer states."""
    positions = config.get("max_position_embeddings") or config.get("n_positions") or 1 << 30
    # RoBERTa and its descendants number positions from padding_idx + 1, which takes that many away
    if "roberta" in str(config.get("model_type", "")) or config.get("model_type") in (
        "camembert",
        "mpnet",
        "longformer",
    ):
        positions -= int(config.get("pad_token_id") or 0) + 1
    return int(min(positions, tokenizer.model_max_length))
