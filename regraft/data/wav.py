"""WAV files as samples: sizes are checked before anything is read, and only plain PCM is understood."""

from __future__ import annotations

import io
import math
import wave

import numpy as np

from regraft.errors import DataError

MAX_BYTES = 1 << 26  # of a file
MAX_SECONDS = 120.0


def read_wave(data: object, *, name: str = "sound") -> tuple[np.ndarray, int]:
    """A PCM WAV file as samples (T,) float32 in [-1, 1], the mean of its channels, and their rate in hertz.

    Raises:
        DataError: no bytes, no WAV file, empty, cut off, not PCM of 8, 16, 24 or 32 bits, or too large.
    """
    if not isinstance(data, bytes) or not data:
        raise DataError(f"{name}: there is no sound file; put it back or take its row out")
    if len(data) > MAX_BYTES:
        raise DataError(f"{name}: the file has {len(data):,} bytes, more than {MAX_BYTES:,}; cut it into pieces")
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate, frames = (
                file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes(),
            )  # fmt: skip
            if width > 4:
                raise DataError(f"{name}: must be PCM of 8, 16, 24 or 32 bits, got {8 * width} bits")
            if not 1000 <= rate <= 384_000 or frames == 0 or frames > MAX_SECONDS * rate:
                raise DataError(
                    f"{name}: must last from one sample to {MAX_SECONDS:.0f} s at 1 to 384 kHz, got {frames:,} samples at "
                    f"{rate:,} Hz"
                )
            raw = file.readframes(frames)
    except (wave.Error, EOFError, ValueError) as error:
        raise DataError(f"{name}: cannot be read as a PCM WAV file ({str(error) or 'it is cut off'})") from None
    if len(raw) != frames * channels * width:
        raise DataError(f"{name}: is cut off, {len(raw):,} of {frames * channels * width:,} bytes of sound are there")
    return _samples(raw, width).reshape(frames, channels).mean(1), rate


def _samples(raw: bytes, width: int) -> np.ndarray:
    if width == 1:
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:
        bytes_ = np.frombuffer(raw, np.uint8).reshape(-1, 3).astype(np.int32)
        whole = (bytes_[:, 0] << 8 | bytes_[:, 1] << 16 | bytes_[:, 2] << 24) >> 8
        return whole.astype(np.float32) / (1 << 23)
    return np.frombuffer(raw, f"<i{width}").astype(np.float32) / (1 << (8 * width - 1))


def resampled(samples: np.ndarray, old: int, new: int) -> np.ndarray:
    """Samples (T,) at rate `old` as samples at rate `new`, by scipy's polyphase filter."""
    if old == new:
        return samples
    from scipy.signal import resample_poly

    common = math.gcd(old, new)
    return resample_poly(samples, new // common, old // common).astype(np.float32)
