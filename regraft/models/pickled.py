"""Weights of a .bin, .pt or .pth file as a folder with safetensors: read once, without running code, and never opened again.

`torch.load(weights_only=True)` builds tensors and plain containers only. What it may read is bounded first, what it gives is
checked, and the result lies in the cache under the sha256 of the file it came from.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from regraft.data.cache import cache_folder, file_sha256
from regraft.errors import ModelError
from regraft.models.safety import LARGEST_JSON, no_safetensors, read_json

SUFFIXES = (".bin", ".pt", ".pth")
NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")
WRAPPERS = ("state_dict", "model_state_dict", "model")
INDEX = "pytorch_model.bin.index.json"
LARGEST_LIST = 2 * 2**20  # bytes of the pickle itself, which lists the tensors: room for 20,000 of them


def converted(folder: Path) -> Path:
    """A folder of the cache with the same files and the weights as model.safetensors.

    Raises:
        ModelError: the folder has no such file, or one that holds anything but named tensors.
    """
    files = _pickled_files(folder)
    beside = [f for f in sorted(folder.iterdir()) if f.is_file() and f.suffix in (".json", ".txt", ".model", ".md")]
    digest = hashlib.sha256("".join(f"{f.name}\0{file_sha256(f)}\0" for f in [*files, *beside]).encode()).hexdigest()
    target = cache_folder("weights") / digest
    if (target / "model.safetensors").is_file():
        return target
    making = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{digest[:12]}."))
    try:
        tensors: dict[str, Tensor] = {}
        for file in files:
            tensors |= _tensors(file)
        for file in beside:
            if file.name != INDEX and file.stat().st_size <= LARGEST_JSON * 4:
                shutil.copyfile(file, making / file.name)
        save_file(tensors, making / "model.safetensors", metadata={"format": "pt"})
        if not target.exists():
            making.rename(target)
    except OSError as error:
        raise ModelError(f"{target}: the converted weights cannot be written ({error.strerror}); make room") from None
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return target


def _pickled_files(folder: Path) -> list[Path]:
    """The pickled weight files of a model folder."""
    if (folder / INDEX).is_file():
        mapping = read_json(folder / INDEX).get("weight_map")
        names = sorted({str(name) for name in mapping.values()}) if isinstance(mapping, dict) else []
        for name in names or [str(mapping)]:
            if Path(name).name != name or not name.endswith(SUFFIXES) or not (folder / name).is_file():
                raise ModelError(
                    f"{folder / INDEX} must name weight files beside it, got {name[:100]!r}; fetch it again"
                )
        return [folder / name for name in names]
    found = [
        file
        for file in sorted(folder.iterdir())
        if file.suffix in SUFFIXES and file.is_file() and not file.name.startswith(NOT_WEIGHTS)
    ]
    standard = [file for file in found if file.name == "pytorch_model.bin"]
    if standard or len(found) == 1:
        return standard or found
    if found:
        raise ModelError(
            f"{folder} must have one file of weights, got {', '.join(f.name for f in found[:4])}; keep one"
        )
    raise no_safetensors(folder)


def _tensors(file: Path) -> dict[str, Tensor]:
    """The named tensors of one file, in memory of their own."""
    _check_archive(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of protocols that the reader of torch may not know: it says so when it fails
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # what a hostile pickle makes the reader raise has no common class
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise ModelError(f"{file} holds more than tensors, or is damaged ({reason}); nothing of it was run") from None
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"{file} must hold named tensors, got a {type(content).__name__}; save its state_dict")
    room = file.stat().st_size
    for name, value in cast(Mapping[Any, Any], content).items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout is not torch.strided:
            raise ModelError(f"{file} must hold named tensors, got {str(name)[:60]!r} of type {type(value).__name__}")
        if value.is_meta or value.numel() * value.element_size() > room:
            raise ModelError(f"{file}: the tensor {name[:60]!r} is larger than the file, so the file is damaged")
    if sum(value.numel() * value.element_size() for value in content.values()) > 4 * room:  # tied weights occur twice
        raise ModelError(f"{file}: its tensors are larger than the file, so the file is damaged")
    return {name: value.detach().contiguous().clone() for name, value in content.items()}


def _check_archive(file: Path) -> None:
    """ModelError unless a file is a zip archive as torch writes it: stored, not compressed, with a short pickle."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelError(
            f"{file} is no archive as torch has written since 1.6 ({error}); load it where you trust it, and save it again"
        ) from None
    if sum(member.file_size for member in members) > file.stat().st_size:
        raise ModelError(f"{file} unpacks to more than its size, which no file of torch does; it is not read")
    if any(m.compress_type != zipfile.ZIP_STORED for m in members):
        raise ModelError(f"{file} is compressed, which no file of torch is; it is not read")
    if any(m.filename.endswith(".pkl") and m.file_size > LARGEST_LIST for m in members):
        raise ModelError(f"{file} has a list of tensors of more than {LARGEST_LIST:,} bytes; it is not read")
