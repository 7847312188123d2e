"""TimeStretch and SpecAugment: sounds said more slowly or quickly at the same pitch, and spectrograms with bands masked."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from regraft.core import Batch, Recipe, Source, Stage, Technique, each_stage
from regraft.core.protocols import layers
from regraft.core.seeding import mix, stream
from regraft.data.augment import uniforms
from regraft.data.changed import Changed, is_plain, picture_key, require_pictures
from regraft.data.sounds import spectrogram
from regraft.errors import Conflict

WINDOW, HOP = 512, 128  # samples of the vocoder's Fourier transforms


def stretched(wave: Tensor, speed: float) -> Tensor:
    """A wave (T,) as a wave (round(T / speed),), at least one sample, of the same pitch, by a phase vocoder.

    Flanagan and Golden, 1966, doi:10.1002/j.1538-7305.1966.tb01706.x: magnitudes are read at other times, and phases advance
    as fast as they did.
    """
    length = max(1, round(len(wave) / speed))
    before = spectrogram(wave[None], size=WINDOW, hop=HOP)[0]  # (bins, frames)
    frames = max(1, math.ceil(before.shape[1] / speed))
    place = torch.arange(frames) * speed
    left = place.floor().long().clamp(max=before.shape[1] - 1)
    right = (left + 1).clamp(max=before.shape[1] - 1)
    share = (place - left).clamp(0, 1)
    magnitude = (1 - share) * before.abs()[:, left] + share * before.abs()[:, right]
    usual = torch.arange(before.shape[0])[:, None] * (2 * math.pi * HOP / WINDOW)  # advance of a bin's own frequency
    phase = before.angle()
    advance = phase[:, right] - phase[:, left] - usual
    advance = advance - 2 * math.pi * (advance / (2 * math.pi)).round() + usual
    turned = torch.cat([phase[:, :1], phase[:, :1] + advance[:, :-1].cumsum(1)], 1)
    window = torch.hann_window(WINDOW, dtype=wave.dtype)
    return torch.istft(torch.polar(magnitude, turned), WINDOW, HOP, window=window, length=length)


class Stretched(Changed):
    """`base` with its sounds stretched before they become spectrograms."""

    def __init__(self, base: Source, encoded: Any, spec: TimeStretch) -> None:
        super().__init__(base)
        self.sounds, self.spec = encoded, spec

    def changed(self, batch: Batch, step: int) -> Batch:
        """The batch with its inputs made from stretched sounds."""
        rows = batch[next(by for key, by in self.inputs.items() if is_plain(key))].cpu().numpy()
        signed = (2 * uniforms(mix(self.spec.seed, step, stream("TimeStretch")), rows, 1)[:, 0] - 1).tolist()

        def change(waves: list[Tensor]) -> list[Tensor]:
            return [stretched(wave, (1 + self.spec.most) ** by) for wave, by in zip(waves, signed, strict=True)]

        return batch | self.sounds.collate_waves(rows, change)


class TimeStretch(Technique):
    """Plays training sounds more slowly or quickly at random, at the same pitch.

    The speed is drawn for every sound from 1 / (1 + most) to 1 + most, evenly in its logarithm, as a function of (seed, step,
    example); a phase vocoder (Flanagan and Golden, 1966, doi:10.1002/j.1538-7305.1966.tb01706.x) changes the length and leaves
    the frequencies.

    Use it when people speak, or machines run, at other speeds than in the few recordings there are.
    Not when the speed is the label, as with heart beats.
    What is stretched sounds new each time, so `CachePrefix` is refused beside it.

    Attributes:
        most: a sound is at most this much quicker, or as much slower.
        seed: decides the draws, with step and example.

    Example:
        ```yaml
        techniques:
          - TimeStretch: {most: 0.2}
        ```
    """

    most: float = Field(default=0.2, ge=0, le=3)
    seed: int = 0

    wraps: ClassVar[frozenset[str]] = frozenset({"source"})
    reads: ClassVar[frozenset[str]] = frozenset({""})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "inner"  # before spectrograms are masked or mixed

    def apply(self, recipe: Recipe) -> Recipe:
        """Stretch the sounds of every stage."""
        return each_stage(recipe, self._stretching) if self.most else recipe

    def _stretching(self, stage: Stage[Any]) -> Stage[Any]:
        for layer in layers(stage.source):
            encoded: Any = getattr(layer, "encoded", None)
            if hasattr(encoded, "collate_waves") and any(is_plain(key) for key in stage.source.inputs):
                return replace(stage, source=Stretched(stage.source, encoded, self))
        raise Conflict(
            f"TimeStretch changes sounds before they become spectrograms, but what stage {stage.name!r} yields "
            f"({', '.join(sorted(stage.source.inputs))}) comes from none; drop TimeStretch"
        )


# ---- masks


def masked(values: Tensor, widths: Tensor, starts: Tensor, *, axis: int) -> Tensor:
    """Where spectrograms (N, C, F, T) are masked, (N, 1, F, T) bool: bands along `axis`.

    Args:
        values: their shape and device.
        widths: (N, K) of each band, in rows of the spectrogram.
        starts: (N, K) its first row.
        axis: 2 masks frequencies, 3 times.
    """
    at = torch.arange(values.shape[axis], device=values.device)
    inside = ((at >= starts[:, :, None]) & (at < (starts + widths)[:, :, None])).any(1)  # (N, F or T)
    shown = inside[:, None, :, None] if axis == 2 else inside[:, None, None, :]
    return shown.expand(-1, 1, *values.shape[2:])


class Masked(Changed):
    """`base` with bands of its spectrograms masked."""

    def __init__(self, base: Source, spec: SpecAugment) -> None:
        super().__init__(base)
        self.spec = spec

    def changed(self, batch: Batch, step: int) -> Batch:
        """The batch with its spectrograms masked by each one's mean."""
        spec = self.spec
        key = picture_key(batch, self.inputs, name="SpecAugment")
        values, ids = batch[key], batch[self.inputs[key]].cpu().numpy()
        count = spec.frequency_masks + spec.time_masks
        draws = uniforms(mix(spec.seed, step, stream("SpecAugment")), ids, 2 * count).to(values.device)
        hidden = torch.zeros_like(values[:, :1], dtype=torch.bool)
        parts = ((2, spec.frequency_masks, spec.frequency_width), (3, spec.time_masks, spec.time_width))
        for axis, number, width in parts:
            here, draws = draws[:, : 2 * number], draws[:, 2 * number :]
            length = values.shape[axis]
            widths = (here[:, :number] * (int(width * length) + 1)).floor()
            starts = (here[:, number:] * (length - widths + 1)).floor()
            hidden = hidden | masked(values, widths, starts, axis=axis)
        return batch | {key: torch.where(hidden, values.mean((1, 2, 3), keepdim=True), values)}


class SpecAugment(Technique):
    """Masks bands of frequency and stretches of time in spectrograms (N, channels, frequency, time); labels stay.

    Park et al., 2019, arXiv:1904.08779, section 2: the width of each mask is drawn evenly from 0 to its largest, then its place.
    A masked value is the mean of its spectrogram. The paper's time warping is left out, whose gain it calls minor;
    `TimeStretch` changes the speed. Draws are a function of (seed, step, example).

    Use it when a network hears few recordings for many epochs: it must not rely on one band or one moment.
    Not when the label is a short event that a mask may hide, unless masks in time are narrow.
    What is masked looks new each time, so `CachePrefix` is refused beside it.

    Attributes:
        frequency_masks: number of masked bands; 0 for none.
        frequency_width: largest width of one, as a share of the bands.
        time_masks: number of masked stretches.
        time_width: largest length of one, as a share of the time.
        seed: decides the draws, with step and example.

    Example:
        ```yaml
        techniques:
          - SpecAugment: {frequency_masks: 2, time_masks: 2}
        ```
    """

    frequency_masks: int = Field(default=2, ge=0, le=20)
    frequency_width: float = Field(default=0.2, ge=0, lt=1)
    time_masks: int = Field(default=2, ge=0, le=20)
    time_width: float = Field(default=0.2, ge=0, lt=1)
    seed: int = 0

    wraps: ClassVar[frozenset[str]] = frozenset({"source"})
    reads: ClassVar[frozenset[str]] = frozenset({""})

    def apply(self, recipe: Recipe) -> Recipe:
        """Mask the spectrograms of every stage."""
        return each_stage(recipe, self._masking) if self.frequency_masks + self.time_masks else recipe

    def _masking(self, stage: Stage[Any]) -> Stage[Any]:
        require_pictures(stage.source, name="SpecAugment")
        return replace(stage, source=Masked(stage.source, self))
