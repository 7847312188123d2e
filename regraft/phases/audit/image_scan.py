"""One pass over all images: header, whether they decode, hashes and small thumbnails. Nothing larger than a bomb is decoded."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from regraft.data.safe_image import DAMAGE, BadImage, frames_of, on_white, opened, strips

GREY, COLOUR = 48, 16  # sides of the thumbnails
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jfif", ".jpe", ".mpo"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """What is known of one image after looking at it once."""

    key: int  # first 64 bits of the SHA-256 of its bytes
    bad: str = (
        ""  # why it cannot be read: "empty (0 bytes)", "not an image", "truncated or damaged", "a decompression bomb"
    )
    format: str = ""
    mode: str = ""
    width: int = 0  # of the file, before it is turned upright
    height: int = 0
    orientation: int = 1  # EXIF tag 0x0112
    deep: bool = False  # more than 8 bits a channel
    transparent: bool = False
    frames: int = 1
    spread: float = 0.0  # standard deviation of the grey thumbnail
    grey: np.ndarray | None = None  # (48, 48) uint8, upright
    colour: np.ndarray | None = None  # (16, 16, 3) uint8, upright

    @property
    def side(self) -> int:
        """The shorter side in pixels."""
        return min(self.width, self.height)

    @property
    def is_palette(self) -> bool:
        """Whether the file indexes a palette or holds several frames."""
        return self.mode == "P" or self.format == "GIF" or self.frames > 1

    @property
    def turned(self) -> bool:
        """Whether an EXIF mark says that the picture must be turned or mirrored."""
        return self.orientation not in (0, 1)


def scan(count: int, read: Callable[[int], bytes], *, workers: int = 2) -> list[Look]:
    """A look at each of `count` images whose bytes `read` gives, in order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd tags and the like; what matters is found below
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(lambda index: look(read(index)), range(count)))


def look(data: bytes) -> Look:
    """A look at one image file."""
    key = int.from_bytes(hashlib.sha256(data).digest()[:8], "little")
    if not data:
        return Look(key=key, bad="empty (0 bytes)")
    try:
        image = opened(data)
    except BadImage as bad:
        return Look(key=key, bad="a decompression bomb" if bad.kind == "decompression-bomb" else "not an image")
    width, height = image.size
    known = {"key": key, "format": image.format or "", "mode": image.mode, "width": width, "height": height}
    try:
        return _decoded(image, known, frames=frames_of(data, image.format))
    except DAMAGE:
        return Look(**known, bad="truncated or damaged")


def _decoded(image: Image.Image, known: dict, *, frames: int) -> Look:
    """The rest of the look, which needs the pixels."""
    deep = image.mode.startswith("I") or image.mode == "F"
    frames = frames if image.format in ("GIF", "TIFF") else int(getattr(image, "n_frames", 1))
    orientation = int(image.getexif().get(0x0112, 1) or 1)
    image.load()
    transparent = "transparency" in image.info or (
        image.mode in ("RGBA", "LA", "PA") and int(np.asarray(image.getchannel("A")).min()) < 255
    )
    plain = as_rgb(image)
    grey = np.asarray(
        plain.convert("L").resize(
            (GREY, GREY), Image.Resampling.BOX if min(plain.size) >= GREY else Image.Resampling.BILINEAR
        )
    )
    colour = np.asarray(plain.resize((COLOUR, COLOUR), Image.Resampling.BOX))
    spread = float(
        np.asarray(plain.convert("L").resize((256, 256)) if max(plain.size) > 512 else plain.convert("L")).std()
    )
    return Look(
        **known,
        orientation=orientation,
        deep=deep,
        transparent=transparent,
        frames=frames,
        spread=spread,
        grey=grey,
        colour=colour,
    )


def as_rgb(image: Image.Image) -> Image.Image:
    """The image upright in RGB: deep grey scaled to 8 bits, transparency on white."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        _, high = upright.getextrema()
        top = 65535.0 if float(str(high)) > 255 else 255.0
        out = np.empty((upright.height, upright.width), np.uint8)
        for first, last in strips(upright):
            values = np.asarray(upright.crop((0, first, upright.width, last)), dtype=np.float64)
            out[first:last] = (np.clip(values / top, 0, 1) * 255).astype(np.uint8)
        return Image.fromarray(out).convert("RGB")
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        return on_white(upright)
    return upright.convert("RGB")


def thumbnails(looks: Sequence[Look]) -> tuple[np.ndarray, np.ndarray]:
    """((N, 48, 48), (N, 16, 16, 3)) uint8 thumbnails, zeros where an image cannot be read."""
    grey = np.zeros((len(looks), GREY, GREY), np.uint8)
    colour = np.zeros((len(looks), COLOUR, COLOUR, 3), np.uint8)
    for place, one in enumerate(looks):
        if one.grey is not None and one.colour is not None:
            grey[place], colour[place] = one.grey, one.colour
    return grey, colour
