"""Rows of numbers and categories as one float vector each, with everything that was fitted kept as JSON."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.errors import DataError

ONE_HOT = 32  # categories of a column with a place of their own, the most frequent ones
FAR = 1e100  # spreads from the median
BUCKETS = 16  # places shared by the others of a column with more categories than that


@dataclass(frozen=True)
class EncodedTable:
    """N rows as vectors."""

    x: np.ndarray  # (N, F) float32; may be memory-mapped

    @property
    def inputs(self) -> tuple[str, ...]:
        """Batch keys the model is called on."""
        return ("x",)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) ones: all rows have one shape."""
        return np.ones(len(self.x), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.x)

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be stored; chunks of it are joined along the first dimension."""
        return {"x": self.x}

    def collate(self, rows: np.ndarray, /) -> dict[str, Tensor]:
        """`x` (M, F) float32."""
        return {"x": torch.from_numpy(np.ascontiguousarray(self.x[rows]))}


@dataclass(frozen=True)
class Numeric:
    """A column of numbers: centre, scale, and whether its gaps get a feature of their own."""

    column: str
    median: float
    scale: float  # 0 for a constant column
    gaps: bool  # a value was missing in training: a 0/1 feature says where

    @property
    def width(self) -> int:
        """Features this column becomes."""
        return 1 + self.gaps

    @classmethod
    def fit(cls, column: str, values: np.ndarray) -> Numeric:
        """Median and inverse spread of values (N,), NaN where missing.

        The spread is the distance of the quartiles; where they coincide (a mostly constant column), that of the values other
        than the median, then half the range.
        """
        known = values[~np.isnan(values)]
        if len(known) == 0:
            return cls(column, 0.0, 0.0, True)
        median = float(np.median(known))
        others = known[known != median]
        spread = _quartile_distance(known) or (_quartile_distance(others) if len(others) else 0.0)
        spread = spread or float(known.max() - known.min()) / 2
        return cls(column, median, 1 / spread if spread else 0.0, len(known) < len(values))

    def features(self, values: np.ndarray) -> np.ndarray:
        """(N, 1 or 2) float32: the smoothly clipped, scaled value, and whether it was missing (then the value is 0).

        Robust scaling and smooth clipping, z / sqrt(1 + (z / 3)^2): Holzmueller et al., 2024, arXiv:2407.04491, section 3;
        it differs in the spread of mostly constant columns (see `fit`). Values lie within -3 and 3 whatever the tails.
        """
        missing = np.isnan(values)
        z = (np.where(missing, self.median, values) - self.median) * self.scale
        z = np.clip(z, -FAR, FAR)  # so that the square of a huge value is finite; what is within is not changed
        parts = [z / np.sqrt(1 + (z / 3) ** 2)] + ([missing] if self.gaps else [])
        return np.stack(parts, axis=1).astype(np.float32)


def _quartile_distance(values: np.ndarray) -> float:
    low, high = np.quantile(values, [0.25, 0.75])
    return float(high - low)


@dataclass(frozen=True)
class Categorical:
    """A column of categories: a place for each frequent one, one for missing, and a few for all others."""

    column: str
    categories: tuple[str, ...]  # most frequent first
    buckets: int  # places for all others, among them what was never seen in training; chosen by CRC-32

    @property
    def width(self) -> int:
        """Features this column becomes."""
        return len(self.categories) + 1 + self.buckets

    @classmethod
    def fit(cls, column: str, values: list[str | None]) -> Categorical:
        """The most frequent categories. Those seen once only share the place of the unknown, so that it is trained."""
        counts = Counter(v for v in values if v is not None)
        ordered = sorted(counts, key=lambda value: (-counts[value], value))
        frequent = [value for value in ordered[:ONE_HOT] if counts[value] > 1]
        return cls(column, tuple(frequent), BUCKETS if len(ordered) > ONE_HOT else 1)

    def features(self, values: list[str | None]) -> np.ndarray:
        """(N, width) float32 of one 1 a row."""
        places = {value: i for i, value in enumerate(self.categories)}
        known = len(self.categories)
        hot = [
            known if v is None else places[v] if v in places else known + 1 + zlib.crc32(v.encode()) % self.buckets
            for v in values
        ]
        out = np.zeros((len(values), self.width), dtype=np.float32)
        out[np.arange(len(values)), hot] = 1
        return out


@dataclass(frozen=True)
class TablePreprocessor:
    """Turns the columns of a table into vectors; fitted on training rows only."""

    numeric: tuple[Numeric, ...]
    categorical: tuple[Categorical, ...]

    @classmethod
    def fit(
        cls, columns: Mapping[str, list[object]], *, numeric: tuple[str, ...], categorical: tuple[str, ...]
    ) -> TablePreprocessor:
        """The preprocessor for these training rows.

        Args:
            columns: raw values by column name; None is missing.
            numeric: columns read as numbers.
            categorical: columns read as categories.

        Raises:
            DataError: a column is absent, or a number is none.
        """
        return cls(
            tuple(Numeric.fit(c, numbers(columns, c)) for c in numeric),
            tuple(Categorical.fit(c, words(columns, c)) for c in categorical),
        )

    @property
    def width(self) -> int:
        """F, the number of features."""
        return sum(part.width for part in (*self.numeric, *self.categorical))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of everything that was fitted."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def feature_names(self) -> list[str]:
        """A name for each of the F features: `age`, `age missing`, `sex = Male`, `sex missing`, `sex other 0`."""
        names = [n for c in self.numeric for n in ([c.column, f"{c.column} missing"] if c.gaps else [c.column])]
        for part in self.categorical:
            names += [f"{part.column} = {value}" for value in part.categories] + [f"{part.column} missing"]
            names += [f"{part.column} other {i}" for i in range(part.buckets)]
        return names

    def encode(self, columns: Mapping[str, list[object]], /, *, names: list[str] | None = None) -> EncodedTable:
        """Raw values by column name -> vectors; None is missing.

        Raises:
            DataError: a column is absent, or a number is none; the row is named.
        """
        parts = [part.features(numbers(columns, part.column, names)) for part in self.numeric]
        parts += [part.features(words(columns, part.column)) for part in self.categorical]
        return EncodedTable(np.concatenate(parts, axis=1))

    def restore(self, arrays: Mapping[str, np.ndarray]) -> EncodedTable:
        """The examples again from what `EncodedTable.arrays` gave."""
        return EncodedTable(arrays["x"])

    def save_files(self, folder: Path) -> None:
        """Nothing lies beside the JSON."""

    def to_json(self) -> dict[str, object]:
        """Every fitted number and category."""
        return {
            "kind": "table",
            "numeric": [asdict(part) for part in self.numeric],
            "categorical": [{**asdict(part), "categories": list(part.categories)} for part in self.categorical],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TablePreprocessor:
        """The preprocessor again from its JSON."""
        return cls(
            tuple(Numeric(**part) for part in data["numeric"]),
            tuple(Categorical(p["column"], tuple(p["categories"]), p["buckets"]) for p in data["categorical"]),
        )


def numbers(columns: Mapping[str, list[object]], column: str, names: list[str] | None = None) -> np.ndarray:
    """(N,) float64 of a column, NaN where missing; texts such as "3.5" are read as numbers.

    Raises:
        DataError: the column is absent, or a value is not a finite number; the row is named.
    """
    values = _column(columns, column)
    out = np.empty(len(values), dtype=np.float64)
    for i, value in enumerate(values):
        try:
            out[i] = np.nan if value is None or value == "" else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            out[i] = np.inf
        if np.isinf(out[i]):
            name = names[i] if names else f"row {i}"
            raise DataError(f"{name}: column {column!r} must hold finite numbers, got {value!r}")
    return out


def words(columns: Mapping[str, list[object]], column: str) -> list[str | None]:
    """Categories of a column as text, None where missing; 1 and 1.0 are one category.

    Raises:
        DataError: the column is absent.
    """
    return [_word(value) for value in _column(columns, column)]


def _word(value: object) -> str | None:
    if isinstance(value, str):
        return value or None
    if value is None or value != value:
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _column(columns: Mapping[str, list[object]], column: str) -> list[object]:
    if column not in columns:
        raise DataError(f"column {column!r} is not in the data, which has {', '.join(map(repr, columns))}")
    return columns[column]
