"""Sounds as log-mel spectrograms of one size: WAV files read safely, kept as waves, turned into spectrograms batch by batch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.data.wav import read_wave, resampled
from regraft.errors import DataError

FLOOR = 1e-6  # power below which a band is silent


def mel(hertz: np.ndarray) -> np.ndarray:
    """Frequencies on the mel scale. O'Shaughnessy, 1987; the formula of HTK: 2595 log10(1 + f / 700)."""
    return 2595 * np.log10(1 + hertz / 700)


def mel_filters(num_bins: int, num_mels: int, rate: int) -> np.ndarray:
    """Triangles (num_bins, num_mels) from 0 to half the rate, evenly spaced in mel, each 1 at its peak.

    `num_bins` are those of a Fourier transform of a real signal.
    """
    bins = np.linspace(0, rate / 2, num_bins)
    edges = 700 * (10 ** (np.linspace(0, mel(np.asarray(rate / 2)), num_mels + 2) / 2595) - 1)
    width = np.diff(edges)
    away = edges[None] - bins[:, None]
    return np.maximum(0, np.minimum(-away[:, :-2] / width[:-1], away[:, 2:] / width[1:]))


def spectrogram(waves: Tensor, *, size: int, hop: int) -> Tensor:
    """Complex short-time Fourier transform (M, size // 2 + 1, T // hop + 1) of waves (M, T), with a Hann window."""
    window = torch.hann_window(size, dtype=waves.dtype)
    return torch.stft(waves, size, hop, window=window, return_complex=True, pad_mode="constant")


@dataclass(frozen=True)
class EncodedSounds:
    """N sounds as waves, ragged: sound i is `samples[offsets[i] : offsets[i + 1]]`."""

    samples: np.ndarray  # (T,) float32; may be memory-mapped
    counts: np.ndarray  # (N,) int64 samples of each sound
    how: SoundPreprocessor

    @property
    def inputs(self) -> tuple[str, ...]:
        """Batch keys the model is called on."""
        return ("x",)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) ones: all spectrograms have one size."""
        return np.ones(len(self.counts), dtype=np.int64)

    @cached_property
    def offsets(self) -> np.ndarray:
        """(N + 1,) where each sound starts."""
        return np.append(0, np.cumsum(self.counts, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.counts)

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be stored; chunks of it are joined along the first dimension."""
        return {"samples": self.samples, "counts": self.counts}

    def collate(self, rows: np.ndarray, /) -> dict[str, Tensor]:
        """Log-mel spectrograms (M, 1, mels, frames), of about mean 0 and deviation 1."""
        return self.collate_waves(rows, lambda waves: waves)

    def collate_waves(self, rows: np.ndarray, change: Callable[[list[Tensor]], list[Tensor]], /) -> dict[str, Tensor]:
        """As `collate`, with `change` applied to the waves (T,) before they are cut to one length and transformed."""
        waves = [
            torch.from_numpy(np.array(self.samples[self.offsets[row] : self.offsets[row + 1]])) for row in rows.tolist()
        ]
        return {"x": (self.how.log_mel(change(waves)) - self.how.mean) / self.how.deviation}


@dataclass(frozen=True, kw_only=True)
class SoundPreprocessor:
    """Turns WAV files into log-mel spectrograms of one size: cut at the end, or filled up with silence."""

    column: str
    rate: int  # hertz; other rates are resampled
    seconds: float  # of each spectrogram
    mels: int = 40
    size: int = 256  # samples of a window
    hop: int = 80  # samples from one window to the next
    mean: float = 0.0  # of the training values
    deviation: float = 1.0

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all options."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @property
    def num_samples(self) -> int:
        """Samples of each spectrogram."""
        return round(self.seconds * self.rate)

    def log_mel(self, waves: list[Tensor]) -> Tensor:
        """Natural logarithms (M, 1, mels, frames) of the power in each mel band of waves (T,) in [-1, 1]."""
        length = self.num_samples
        whole = torch.stack([torch.nn.functional.pad(one[:length], (0, max(0, length - len(one)))) for one in waves])
        power = spectrogram(whole, size=self.size, hop=self.hop).abs().square()
        filters = torch.from_numpy(mel_filters(self.size // 2 + 1, self.mels, self.rate)).float()
        return (filters.T @ power).clamp(min=FLOOR).log()[:, None]

    def encode(self, columns: Mapping[str, list[object]], /, *, names: list[str] | None = None) -> EncodedSounds:
        """Bytes of WAV files -> waves.

        Raises:
            DataError: the column is absent, or a sound cannot be read; it is named.
        """
        if self.column not in columns:
            raise DataError(
                f"sound column {self.column!r} is not in the data, which has {', '.join(map(repr, columns))}"
            )
        called = names or [f"row {i}" for i in range(len(columns[self.column]))]
        waves = [
            resampled(*read_wave(data, name=name), self.rate)
            for data, name in zip(columns[self.column], called, strict=True)
        ]
        counts = np.fromiter(map(len, waves), np.int64, len(waves))
        return self.restore({"samples": np.concatenate([*waves, np.empty(0, np.float32)]), "counts": counts})

    def restore(self, arrays: Mapping[str, np.ndarray]) -> EncodedSounds:
        """The examples again from what `EncodedSounds.arrays` gave."""
        return EncodedSounds(arrays["samples"], arrays["counts"], self)

    def save_files(self, folder: Path) -> None:
        """Nothing lies beside the JSON."""

    def to_json(self) -> dict[str, object]:
        """All options."""
        return {"kind": "audio", **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SoundPreprocessor:
        """The preprocessor again from its JSON."""
        return cls(**{name: value for name, value in data.items() if name != "kind"})

    @classmethod
    def fit(cls, files: list[object], column: str, *, names: list[str]) -> SoundPreprocessor:
        """Settings for training sounds: their most frequent rate, the length that 95 % of them have at most, their mean.

        Windows are the power of two next to 25 ms, 10 ms apart. Davis and Mermelstein, 1980, doi:10.1109/TASSP.1980.1163420.
        """
        read = [read_wave(data, name=name) for data, name in zip(files, names, strict=True)]
        rate = max({each for _, each in read}, key=[each for _, each in read].count)
        seconds = float(np.quantile([len(samples) / each for samples, each in read], 0.95))
        size = 2 ** round(math.log2(0.025 * rate))
        made = cls(column=column, rate=rate, seconds=round(max(seconds, 0.1), 3), size=size, hop=round(0.01 * rate))
        values = made.log_mel([torch.from_numpy(resampled(samples, each, rate)) for samples, each in read])
        return replace(made, mean=float(values.mean()), deviation=float(values.std().clamp(min=1e-6)))
