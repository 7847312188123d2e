"""The header of a safetensors file, checked by regraft before any library reads the file: sizes, types, places, no overlap.

Form: eight bytes with the length of the header, the header as JSON (name -> dtype, shape, data_offsets), the tensors' bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from regraft.config.plain_json import NotPlain, plain_json
from regraft.config.spec import shown
from regraft.errors import ModelError

LARGEST_HEADER = 8 * 2**20  # bytes; the largest published models keep below 1 MB a file
MOST_TENSORS = 50_000  # of one file; the largest published models have below 1,000 a file
MOST_DIMENSIONS = 16
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What a safetensors file holds."""

    num_tensors: int
    num_parameters: int
    num_bytes: int


def checked_header(file: Path) -> Header:
    """What a safetensors file holds, once its header is found sound; no tensor is read.

    Raises:
        ModelError: the file is missing, or its header is none that a writer of safetensors makes.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > size - 8:
                raise _Unsound(f"it has {size:,} bytes, too few for its header")
            if length > LARGEST_HEADER:
                raise _Unsound(f"its header has {length:,} bytes, and at most {LARGEST_HEADER:,} are read")
            text = stream.read(length)
        return _header(text, size - 8 - length)
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror}); copy the whole folder") from None
    except (_Unsound, NotPlain) as reason:
        raise ModelError(f"{file} is no sound safetensors file: {reason}; fetch it again") from None


def load_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, once its header is found sound.

    Raises:
        ModelError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    checked_header(file)
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read ({' '.join(str(error).split())[:200]}); fetch it again") from None


class _Unsound(Exception):
    """A header that no writer makes; the message is the reason."""


def _header(text: bytes, room: int) -> Header:
    """What the JSON of a header says, for `room` bytes of tensors behind it."""
    if not text.startswith(b"{"):
        raise _Unsound("its header is not a JSON object")
    if text.count(b"{") > MOST_TENSORS + 2 or text.count(b"[") > 2 * MOST_TENSORS:
        raise _Unsound(f"its header names more than {MOST_TENSORS:,} tensors")
    entries: Any = plain_json(text, deepest=4)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Unsound("its metadata must be text")
    places: list[tuple[int, int]] = []
    parameters = 0
    for name, entry in entries.items():
        begin, end, count = _place(name, entry)
        places.append((begin, end))
        parameters += count
    end = 0
    for begin, stop in sorted(places):
        if begin != end:
            what = "overlap" if begin < end else "leave a hole"
            raise _Unsound(f"its tensors {what} at byte {begin:,}")
        end = stop
    if end != room:
        raise _Unsound(f"its tensors take {end:,} bytes, and the file has {room:,} for them")
    return Header(num_tensors=len(places), num_parameters=parameters, num_bytes=end)


def _place(name: str, entry: Any) -> tuple[int, int, int]:
    """(first byte, byte behind the last, numbers) of a tensor."""
    what = f"the tensor {shown(name, 80)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Unsound(f"{what} must have dtype, shape and data_offsets")
    bits = BITS.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if bits is None:
        raise _Unsound(f"{what} is of the unknown type {shown(entry['dtype'], 40)}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or len(shape) > MOST_DIMENSIONS:
        raise _Unsound(f"{what} has the shape {shown(shape, 80)}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _Unsound(f"{what} has the offsets {shown(offsets, 80)}")
    count = math.prod(shape)
    if (offsets[1] - offsets[0]) * 8 != count * bits:
        raise _Unsound(f"{what} of shape {shown(shape, 80)} does not fit its {offsets[1] - offsets[0]:,} bytes")
    return offsets[0], offsets[1], count


def _are_sizes(value: Any) -> bool:
    """Whether a JSON value is a list of whole numbers from 0 to 2^53."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= 2**53 for item in value)
