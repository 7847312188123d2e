"""Images as pixels of one size: decoded, turned upright, converted and resized once, normalised when a batch is drawn."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from regraft.data.image_config import image_options
from regraft.data.safe_image import DAMAGE, MAX_PIXELS, BadImage, loaded, on_white, strips
from regraft.errors import ConfigError, DataError


@dataclass(frozen=True)
class EncodedImages:
    """N images of one size as 8-bit pixels."""

    pixels: np.ndarray  # (N, C, H, W) uint8; may be memory-mapped
    sizes: np.ndarray  # (N, 2) int32 height and width of each image as it came
    key: str  # batch key the model is called on
    scale: tuple[float, ...]  # per channel: value = pixel * scale + shift
    shift: tuple[float, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Batch keys the model is called on."""
        return (self.key,)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) ones: all images have one shape."""
        return np.ones(len(self.pixels), dtype=np.int64)

    @property
    def num_enlarged(self) -> int:
        """How many images were smaller than the model's input on a side, and were enlarged."""
        return int(np.count_nonzero((self.sizes < np.asarray(self.pixels.shape[2:])).any(axis=1)))

    def __len__(self) -> int:
        return len(self.pixels)

    def arrays(self) -> dict[str, np.ndarray]:
        """What must be stored; chunks of it are joined along the first dimension."""
        return {"pixels": self.pixels, "sizes": self.sizes}

    def collate(self, rows: np.ndarray, /) -> dict[str, Tensor]:
        """Normalised images (M, C, H, W) float32."""
        return self.collate_changed(rows, lambda pixels: pixels)

    def collate_changed(self, rows: np.ndarray, change: Callable[[Tensor], Tensor], /) -> dict[str, Tensor]:
        """As `collate`, with `change` applied to the uint8 pixels before they are normalised: the place for augmentation."""
        pixels = change(torch.from_numpy(np.ascontiguousarray(self.pixels[rows])))
        # in place and in one thread: 10 times the rate of `pixels.float() * scale + shift` on a busy machine
        values = pixels.numpy().astype(np.float32)
        values *= np.asarray(self.scale, dtype=np.float32)[:, None, None]
        values += np.asarray(self.shift, dtype=np.float32)[:, None, None]
        return {self.key: torch.from_numpy(values)}


@dataclass(frozen=True, kw_only=True)
class ImagePreprocessor:
    """Turns image files into pixels as a model expects them: (N, C, H, W) of one size."""

    column: str
    size: tuple[int, int]  # height and width the model takes
    resize: tuple[int, int] | int | None = None  # before the crop: exact (H, W), or the shorter side; None leaves it
    resample: int = 2  # Pillow's number: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic; all but 0 are antialiased
    num_channels: int = 3
    scale: float = 1 / 255  # pixel * scale + offset, then (value - mean) / std
    offset: float = 0.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    key: str = "pixel_values"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.num_channels not in (1, 3):
            raise ConfigError(f"images have 1 or 3 channels, got {self.num_channels}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.num_channels):
                raise ConfigError(f"{name} must have 1 or {self.num_channels} numbers, got {len(values)}")

    @classmethod
    def from_model(cls, folder: str | Path, *, column: str) -> ImagePreprocessor:
        """What `preprocessor_config.json` of a transformers folder asks for, read without transformers or torchvision.

        Raises:
            ModelError: there is no such file, or it asks for something that is not done here.
        """
        return cls(column=column, **image_options(Path(folder)))

    @classmethod
    def plain(cls, column: str, size: tuple[int, int], *, num_channels: int = 3) -> ImagePreprocessor:
        """For a plain network: resized to `size` (H, W), values in [-1, 1], batch key `x`."""
        return cls(column=column, size=size, resize=size, num_channels=num_channels, mean=(0.5,), std=(0.5,), key="x")

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all options."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def encode(self, columns: Mapping[str, list[object]], /, *, names: list[str] | None = None) -> EncodedImages:
        """Bytes of image files -> pixels.

        Args:
            columns: the bytes by column name.
            names: what to call each row in an error, such as its file; default `row 0`, ...

        Raises:
            DataError: the column is absent, or an image cannot be read; it is named.
        """
        if self.column not in columns:
            raise DataError(
                f"image column {self.column!r} is not in the data, which has {', '.join(map(repr, columns))}"
            )
        files = columns[self.column]
        called = names or [f"row {i}" for i in range(len(files))]
        pixels = np.empty((len(files), self.num_channels, *self.size), dtype=np.uint8)
        sizes = np.empty((len(files), 2), dtype=np.int32)

        def fill(index: int) -> None:
            image = upright(files[index], name=called[index], max_pixels=self.max_pixels)
            sizes[index] = image.height, image.width
            pixels[index] = self._fitted(converted(image, self.num_channels, name=called[index]))

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for _ in pool.map(fill, range(len(files))):
                pass
        return self.restore({"pixels": pixels, "sizes": sizes})

    def _fitted(self, image: Image.Image) -> np.ndarray:
        """Resized and cropped about the centre, (C, H, W) uint8; black where the crop is larger than the image."""
        if self.resize is not None:
            height, width = resized_shape((image.height, image.width), self.resize)
            if (height, width) != (image.height, image.width):
                image = image.resize((width, height), Image.Resampling(self.resample))
        if (image.height, image.width) != self.size:
            top, left = (image.height - self.size[0]) // 2, (image.width - self.size[1]) // 2
            image = image.crop((left, top, left + self.size[1], top + self.size[0]))
        pixels = np.asarray(image)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def restore(self, arrays: Mapping[str, np.ndarray]) -> EncodedImages:
        """The examples again from what `EncodedImages.arrays` gave."""
        mean, std = (np.broadcast_to(np.asarray(v, dtype=np.float64), self.num_channels) for v in (self.mean, self.std))
        scale, shift = (self.scale / std).tolist(), ((self.offset - mean) / std).tolist()
        return EncodedImages(arrays["pixels"], arrays["sizes"], self.key, tuple(scale), tuple(shift))

    def save_files(self, folder: Path) -> None:
        """Nothing lies beside the JSON."""

    def to_json(self) -> dict[str, object]:
        """All options."""
        return {"kind": "image", **{name: _listed(value) for name, value in asdict(self).items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ImagePreprocessor:
        """The preprocessor again from its JSON."""
        fields: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in data.items() if n != "kind"}
        return cls(**fields)


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def resized_shape(shape: tuple[int, int], target: tuple[int, int] | int) -> tuple[int, int]:
    """Height and width after resizing: `target` itself, or with the shorter side at `target` and the proportions kept."""
    if isinstance(target, tuple):
        return target
    short, long = min(shape), max(shape)
    other = max(1, int(target * long / short))
    return (target, other) if shape[0] <= shape[1] else (other, target)


def upright(data: object, *, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The first frame of an image file, loaded and turned as its EXIF orientation says, in its own mode.

    Raises:
        BadImage: no bytes, no known image, truncated or damaged, or beyond a limit of `safe_image`.
    """
    image = loaded(data, name=name, max_pixels=max_pixels)
    try:
        return ImageOps.exif_transpose(image)
    except DAMAGE as error:
        raise BadImage("unreadable", f"the image cannot be read: {error}", name=name) from None


def converted(image: Image.Image, num_channels: int, *, name: str = "image") -> Image.Image:
    """The image in mode L (1 channel) or RGB (3 channels); transparency on white, 16-bit grey scaled to 8 bit.

    Raises:
        DataError: floating point or 32-bit pixels, whose range is not known.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bit(image, name)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = on_white(image)
    mode = "L" if num_channels == 1 else "RGB"
    if image.mode == mode:
        return image
    return image.convert(mode) if image.mode in ("1", "L", "P", "RGB", "RGBX") else image.convert("RGB").convert(mode)


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    low, high = image.getextrema()
    if image.mode == "F" or float(str(low)) < 0 or float(str(high)) > 65535:
        raise DataError(f"{name}: pixels of mode {image.mode!r} have no known range; save the image with 8 or 16 bits")
    out = np.empty((image.height, image.width), np.uint8)
    for top, bottom in strips(image):
        values = np.asarray(image.crop((0, top, image.width, bottom)))
        out[top:bottom] = np.round(values.astype(np.float64) / 257)
    return Image.fromarray(out)
