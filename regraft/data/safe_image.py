"""Image files opened as if a stranger had sent them: known formats only, every limit checked in the header before decoding.

Nothing of a file is decoded before its size is known to be harmless, and of several frames only the first one ever is.
"""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Iterator

from PIL import Image

from regraft.errors import DataError

MAX_PIXELS = 50_000_000  # width x height; a camera of 48 megapixels is within it
LARGE = 1 << 24  # pixels from which a file must also have a byte for every PIXELS_PER_BYTE of them
PIXELS_PER_BYTE = 50  # photographs have a byte for 2 to 20 pixels, bombs one for hundreds
MAX_PROPORTION = 200  # longer side to shorter side: scaled to a model's height, a narrower image would fill the memory
MAX_BYTES = 1 << 28  # of a file
MAX_FRAMES = 10_000
MAX_SCANS = 100  # of a progressive JPEG; the usual ones have about ten, and each costs a pass over all pixels
MAX_BLOCKS = 200_000  # of a GIF that are walked over to count its frames
STRIP = 1 << 20  # pixels that are converted at once, so that a large image is never in memory several times over
# no format that runs another program (EPS), opens files by name, or has a decoder that asks for memory as it likes (JPEG 2000)
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, struct.error, ArithmeticError, MemoryError,
    AttributeError, AssertionError, RecursionError, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip  # what Pillow's readers raise on damaged files
_OPENING = threading.Lock()


class BadImage(DataError):
    """An image that cannot be used; `kind` is that of the finding, `why` the end of a sentence about the file."""

    def __init__(self, kind: str, why: str, *, name: str) -> None:
        super().__init__(f"{name}: {why}")
        self.kind, self.why = kind, why


def opened(data: object, *, name: str = "image", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image whose header is read and within every limit, and whose pixels are not decoded yet.

    Raises:
        BadImage: no bytes, no known format, or beyond a limit ("unreadable" or "decompression-bomb").
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise BadImage("unreadable", f"must be the bytes of an image file, got {type(data).__name__}", name=name)
    if len(data) == 0:
        raise BadImage("unreadable", "the image file is empty", name=name)
    if len(data) > MAX_BYTES:
        raise _bomb(f"the image file has {len(data):,} bytes, more than {MAX_BYTES:,}", name)
    raw = bytes(data)
    try:
        image = _with_header(raw)
    except Image.UnidentifiedImageError:
        raise BadImage("unreadable", f"not an image in a known format ({', '.join(FORMATS)})", name=name) from None
    except DAMAGE as error:
        raise BadImage("unreadable", f"the image cannot be read: {error}", name=name) from None
    _check(image, raw, name, min(max_pixels, MAX_PIXELS))
    return image


def loaded(data: object, *, name: str = "image", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The first frame of an image file, decoded.

    Raises:
        BadImage: as `opened`, or the pixels are truncated or damaged.
    """
    image = opened(data, name=name, max_pixels=max_pixels)
    try:
        image.load()
    except DAMAGE as error:
        raise BadImage("unreadable", f"the image cannot be read: {error}", name=name) from None
    return image


def fault(data: object) -> tuple[str, str] | None:
    """(kind, why) of an image that cannot be decoded, None for a sound one. JPEG is decoded at an eighth of its size."""
    try:
        image = opened(data)
        try:
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            low, high = image.getextrema() if image.mode in ("I", "F") else (0, 0)
        except DAMAGE as error:
            raise BadImage("unreadable", f"the image cannot be read: {error}", name="image") from None
        if image.mode == "F" or not (isinstance(low, int) and isinstance(high, int) and 0 <= low <= high <= 65535):
            raise BadImage("unreadable", f"pixels of mode {image.mode!r} have no known range", name="image")
    except BadImage as bad:
        return bad.kind, bad.why
    return None


def frames_of(data: bytes, form: str | None, *, most: int = MAX_FRAMES) -> int:
    """How many frames a file holds, counted in its headers and no further than `most` + 1."""
    if form == "GIF":
        return _gif_frames(data, most)
    if form == "TIFF":
        return _tiff_frames(data, most)
    return 1


def on_white(image: Image.Image) -> Image.Image:
    """A transparent image on white, in RGB."""
    out = Image.new("RGB", image.size)
    for top, bottom in strips(image):
        colour = image.crop((0, top, image.width, bottom)).convert("RGBA")
        ground = Image.new("RGBA", colour.size, "white")
        out.paste(Image.alpha_composite(ground, colour).convert("RGB"), (0, top))
    return out


def strips(image: Image.Image) -> Iterator[tuple[int, int]]:
    """(first row, row after the last) of consecutive strips of an image."""
    rows = max(1, STRIP // max(1, image.width))
    yield from ((top, min(top + rows, image.height)) for top in range(0, image.height, rows))


def _bomb(why: str, name: str) -> BadImage:
    return BadImage("decompression-bomb", f"{why}; make it smaller or leave it out", name=name)


def _with_header(data: bytes) -> Image.Image:
    """The image with its header read. Pillow's limit, which the whole process shares, is off meanwhile: ours is exact."""
    with _OPENING:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            return Image.open(io.BytesIO(data), formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _check(image: Image.Image, data: bytes, name: str, max_pixels: int) -> None:
    """BadImage where the header says that decoding would cost more than the file is worth."""
    width, height = image.size
    pixels, said = width * height, f"the image has {width} x {height} pixels"
    if pixels > max_pixels:
        raise _bomb(f"{said}, more than {max_pixels:,}", name)
    if pixels > LARGE and pixels > PIXELS_PER_BYTE * len(data):
        raise _bomb(f"{said} in {len(data):,} bytes", name)
    if max(width, height) > MAX_PROPORTION * max(1, min(width, height)):
        raise _bomb(f"{said}, one side more than {MAX_PROPORTION} times the other", name)
    if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > MAX_SCANS:
        raise _bomb(f"the image has more than {MAX_SCANS} scans", name)
    frames = frames_of(data, image.format) if image.format in ("GIF", "TIFF") else getattr(image, "n_frames", 1)
    if frames > MAX_FRAMES:
        raise _bomb(f"the image has more than {MAX_FRAMES:,} frames", name)


def _gif_frames(data: bytes, most: int) -> int:
    """Image descriptors of a GIF, found by walking over its blocks; at least 1."""
    at = 13 + _colours(data, 10)
    frames = blocks = 0
    while at < len(data) and frames <= most and blocks < MAX_BLOCKS:
        if data[at] == 0x2C and at + 9 < len(data):
            frames, at = frames + 1, at + 11 + _colours(data, at + 9)
        elif data[at] == 0x21:
            at += 2
        else:
            break
        while at < len(data) and data[at] and blocks < MAX_BLOCKS:
            at, blocks = at + 1 + data[at], blocks + 1
        at, blocks = at + 1, blocks + 1
    return max(1, frames)


def _colours(data: bytes, at: int) -> int:
    """Bytes of the colour table that the flags at a place announce."""
    flags = data[at] if at < len(data) else 0
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _tiff_frames(data: bytes, most: int) -> int:
    """Image directories of a TIFF, found by following their chain; at least 1."""
    order = "<" if data[:2] == b"II" else ">"
    if data[2:4] not in (b"*\0", b"\0*"):
        return 1  # BigTIFF and the like: the first directory is all that is ever read
    (at,) = struct.unpack_from(f"{order}I", data, 4) if len(data) >= 8 else (0,)
    seen: set[int] = set()
    while at and at not in seen and len(seen) <= most and at + 2 <= len(data):
        seen.add(at)
        (count,) = struct.unpack_from(f"{order}H", data, at)
        end = at + 2 + 12 * count
        at = struct.unpack_from(f"{order}I", data, end)[0] if end + 4 <= len(data) else 0
    return max(1, len(seen))
