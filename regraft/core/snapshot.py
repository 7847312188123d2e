"""A state as a folder: `state.safetensors` (tensors by path), `state.json` (everything else) and `manifest.json`.

The manifest holds the sha256 of both and one of itself, and is written last. The folder is made beside its final name, synced
and renamed: a folder with that name is complete, and what was damaged later is noticed before a tensor of it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from regraft.config.plain_json import plain_json
from regraft.core.files import discard, partial_of, replaced_of, sha256, sync_folder, write_synced
from regraft.core.protocols import State
from regraft.errors import DiskError, RunError

FORMAT = "regraft.checkpoint/2"
TENSORS, VALUES, MANIFEST = "state.safetensors", "state.json", "manifest.json"
MANIFEST_BYTES = 400  # of the manifest, up to the length of a name
LONGEST_MANIFEST = 2**16  # bytes of one that are read
_TENSOR = "__tensor__"
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


@dataclass(frozen=True)
class Snapshot:
    """A state at one instant: JSON values, and copies of its tensors on the CPU that nobody else writes to."""

    values: object
    tensors: Mapping[str, Tensor]

    def bytes(self) -> int:
        """Size of its folder."""
        return len(_header(self.tensors)) + self.tensor_bytes() + len(json.dumps(self.values)) + MANIFEST_BYTES

    def tensor_bytes(self) -> int:
        """Size of its tensors alone."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


def take(state: State, buffers: dict[str, Tensor]) -> Snapshot:
    """Copy a state; `buffers` are those of the snapshot before, which are written over where they fit, and are kept for the next.

    Raises:
        RunError: a tensor is of a type that safetensors does not know.
    """
    values, tensors = flattened(state)
    with torch.no_grad():
        for name, tensor in tensors.items():
            buffer = buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
            buffer.copy_(tensor)
    for gone in buffers.keys() - tensors.keys():
        del buffers[gone]
    return Snapshot(values, {name: buffers[name] for name in tensors})


def flattened(state: State) -> tuple[object, dict[str, Tensor]]:
    """A state's JSON values, and its own tensors by path.

    Raises:
        RunError: a tensor is of a type that safetensors does not know.
    """
    tensors: dict[str, Tensor] = {}
    values = _without_tensors(state, "", tensors)
    unknown = next((name for name, tensor in tensors.items() if tensor.dtype not in _DTYPES), None)
    if unknown is not None:
        raise RunError(
            f"the state {unknown} is of type {tensors[unknown].dtype}, which a checkpoint cannot hold; keep it as one of "
            f"{', '.join(str(dtype).removeprefix('torch.') for dtype in _DTYPES)}"
        )
    return values, tensors


# ---- writing


def save(folder: Path, state: State) -> None:
    """Write `state` as the checkpoint `folder`, atomically, and wait for it.

    Raises:
        DiskError: it cannot be written (full disk, read-only folder); what was there before is untouched.
    """
    write(folder, take(state, {}))


def write(folder: Path, snapshot: Snapshot, *, score: float | None = None) -> None:
    """Write a snapshot as the checkpoint `folder`; `score` is what the model was worth on validation rows.

    Raises:
        DiskError: as `save`.
    """
    partial = partial_of(folder)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        hashes = {
            TENSORS: write_synced(partial / TENSORS, _parts(snapshot.tensors)),
            VALUES: write_synced(partial / VALUES, [json.dumps(snapshot.values).encode()]),
        }
        manifest = {"format": FORMAT, "name": folder.name, "score": score, "sha256": hashes}
        write_synced(partial / MANIFEST, [_sealed(manifest)])
        sync_folder(partial)
        _put(partial, folder)
    except OSError as error:
        discard(partial)
        raise DiskError(f"{folder}: {_reason(folder, error)}") from error


def _put(partial: Path, folder: Path) -> None:
    """Give a finished folder its name; one that has it stays beside until then, so that there always is one."""
    old = replaced_of(folder)
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(partial, folder)
    except OSError:
        if old.exists():
            os.rename(old, folder)
        raise
    sync_folder(folder.parent)
    discard(old)


def _reason(folder: Path, error: OSError) -> str:
    place = next(parent for parent in (folder.parent, *folder.parent.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    return f"the checkpoint could not be written ({error.strerror}); {free / 1e9:.2f} GB are free there, make room and resume"


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file."""
    yield _header(tensors)
    for name in _order(tensors):
        yield memoryview(tensors[name].reshape(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    """The size of the header in 8 bytes, then names, types, shapes and places as JSON, padded to 8 bytes."""
    places: dict[str, Any] = {}
    end = 0
    for name in _order(tensors):
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        places[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(places, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Wide types first, so that every tensor lies at a multiple of its element's size."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """The manifest as JSON with the sha256 of its own text: there is one way to write it, so every changed byte shows."""
    plain = json.dumps(manifest, indent=1).encode()
    return json.dumps({**manifest, "seal": hashlib.sha256(plain).hexdigest()}, indent=1).encode()


# ---- reading


def load(folder: Path) -> State:
    """The state a checkpoint holds, once every file of it has been found sound.

    Raises:
        RunError: a file is missing or damaged; the sentence names it.
    """
    manifest = read_manifest(folder)
    try:
        for name, expected in manifest["sha256"].items():
            if sha256(_plain_file(folder / name)) != expected:
                raise RunError(f"{folder / name}: damaged since it was written (its sha256 differs from the manifest)")
        values, tensors = plain_json((folder / VALUES).read_bytes(), finite=False), load_file(folder / TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"{folder}: not a sound checkpoint ({type(error).__name__}: {error})") from error
    return cast(State, _with_tensors(values, tensors))


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the manifest of a checkpoint says of it, once it has been found sound itself.

    Raises:
        RunError: it is missing, damaged, or that of another checkpoint.
    """
    file = folder / MANIFEST
    try:
        with _plain_file(file).open("rb") as stream:
            raw = stream.read(LONGEST_MANIFEST)
        found = cast(dict[str, Any], plain_json(raw))
        plain = {key: value for key, value in found.items() if key != "seal"}
        sound = raw == _sealed(plain) and plain["format"] == FORMAT and plain["sha256"].keys() == {TENSORS, VALUES}
        name = plain["name"]
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{folder}: not a sound checkpoint ({file.name}: {type(error).__name__}: {error})") from error
    if not sound:
        raise RunError(f"{folder}: not a sound checkpoint ({file.name} was changed since it was written)")
    if name != folder.name:
        raise RunError(f"{folder}: not a sound checkpoint (its {file.name} is that of {name})")
    return plain


def _plain_file(path: Path) -> Path:
    """The path of a regular file: a device or a pipe behind its name might never end."""
    if not path.is_file():
        raise OSError(f"{path.name} is missing, or no regular file")
    return path


# ---- nested state <-> JSON and flat tensors


def _without_tensors(value: object, path: str, tensors: dict[str, Tensor]) -> object:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Tensor):
        tensors[path] = value.detach()
        return {_TENSOR: path}
    if isinstance(value, Mapping):
        items = cast(Mapping[str, object], value).items()
        return {str(key): _without_tensors(item, f"{path}/{key}", tensors) for key, item in items}
    if isinstance(value, list | tuple):
        return [_without_tensors(item, f"{path}/{i}", tensors) for i, item in enumerate(cast(list[object], value))]
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> object:
    if isinstance(value, dict):
        items = cast(dict[str, Any], value)
        if items.keys() == {_TENSOR}:
            return tensors[items[_TENSOR]]
        return {key: _with_tensors(item, tensors) for key, item in items.items()}
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in cast(list[Any], value)]
    return value
