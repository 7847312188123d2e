"""What pretrained checkpoints there are on this machine: architecture, size, licence, hash, and whether regraft can use them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regraft.config.plain_json import NotPlain, plain_json
from regraft.data.cache import file_sha256
from regraft.errors import ModelError
from regraft.models.headers import checked_header
from regraft.models.known_weights import is_plain_weights, read_known
from regraft.models.licences import Stated, allows_commercial_use, stated_licence, why_not_commercial
from regraft.models.load import ALIASES, CLOSED, require_encoder, weights_sha256
from regraft.models.safety import LARGEST_JSON, weight_files

PICKLES = (".bin", ".pt", ".pth", ".th", ".ckpt")
DEEPEST = 4  # folders below one that is searched


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One checkpoint, or a model known to have none.

    Attributes:
        name: what a recipe calls it by.
        path: its folder; None of a closed model.
        architecture: model type of transformers, or the family its tensors are of.
        parameters: in the weights; None where they cannot be counted without running code.
        bytes: of the weights.
        licence: as stated, and in which file.
        commercial: does the licence, by its name, allow commercial use? None where that is not known.
        sha256: of the weights, as a recipe can demand it.
        usable: can it be adapted here?
        why: the reason where it cannot.
    """

    name: str
    path: str | None
    architecture: str
    parameters: int | None
    bytes: int
    licence: str | None
    stated_in: str | None
    commercial: bool | None
    sha256: str | None
    usable: bool
    why: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def inventory(folders: Sequence[Path], *, commercial: bool = False) -> list[Checkpoint]:
    """Every checkpoint in the folders, the folder of models, the Hugging Face cache and the installed packages, by name.

    Args:
        folders: to be searched besides; a ModelError where one is not there.
        commercial: those whose licence does not allow commercial use, or does not say so, are not usable.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ModelError(f"{folder} is no folder; give one with model folders in it")
    seen: dict[Path, Checkpoint] = {}
    for name, folder, root in _places(folders):
        seen.setdefault(folder.resolve(), _looked_at(name, folder, root, commercial=commercial))
    return [*sorted(seen.values(), key=lambda each: each.name.casefold()), *closed()]


def closed() -> list[Checkpoint]:
    """Models that cannot be had at all, for their weights were never published."""
    return [
        Checkpoint(
            name=name, path=None, architecture="closed", parameters=None, bytes=0, licence="closed", stated_in=None,
            commercial=None, sha256=None, usable=False, why=why,
        )
        for name, why in CLOSED.items()
    ]  # fmt: skip


# ---- where they are


def _places(folders: Sequence[Path]) -> Iterator[tuple[str, Path, Path]]:
    """(name, folder, folder that was searched) of each model."""
    for alias, package in ALIASES.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            folder = Path(spec.origin).parent / "model"
            yield alias, folder, folder
    named = os.environ.get("REGRAFT_MODELS")
    if named and Path(named).is_dir():
        yield from ((str(f.relative_to(named)), f, Path(named)) for f in _model_folders(Path(named)))
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    for entry in sorted(cache.glob("models--*")) if cache.is_dir() else ():
        name = entry.name.removeprefix("models--").replace("--", "/")
        for snapshot in sorted((entry / "snapshots").glob("*")):
            yield name, snapshot, snapshot
    for folder in folders:
        yield from ((str(found), found, folder) for found in _model_folders(folder))


def _model_folders(root: Path, depth: int = DEEPEST) -> Iterator[Path]:
    """The folders at and below `root` that hold a model; links to folders are not followed."""
    try:
        entries = sorted(root.iterdir())
    except OSError:
        return  # not ours to read: a folder of somebody else's
    if any(_is_model_file(entry) for entry in entries):
        yield root
    for entry in entries:
        if depth and entry.is_dir() and not entry.is_symlink() and not entry.name.startswith("."):
            yield from _model_folders(entry, depth - 1)


def _is_model_file(file: Path) -> bool:
    if file.suffix == ".safetensors" or file.suffix in PICKLES:
        return file.is_file() and file.name != "training_args.bin" and not file.name.startswith("optimizer")
    return file.name == "config.json" and "model_type" in _json(file)


def _json(file: Path) -> dict[str, Any]:
    """A JSON object; empty where it is none, for a folder may hold anything."""
    try:
        if file.stat().st_size > LARGEST_JSON:
            return {}
        found = plain_json(file.read_bytes(), finite=False)
    except (OSError, NotPlain):
        return {}
    return found if isinstance(found, dict) else {}


# ---- what they are


def _looked_at(name: str, folder: Path, root: Path, *, commercial: bool) -> Checkpoint:
    config = _json(folder / "config.json")
    licence = _licence(folder, root, config)
    why = _why_unusable(folder, config)
    if not why and commercial:
        why = why_not_commercial(licence.name if licence else None) or ""
    parameters, size, digest = _weights(folder)
    return Checkpoint(
        name=name,
        path=str(folder),
        architecture=_architecture(folder, config),
        parameters=parameters,
        bytes=size,
        licence=licence.name if licence else None,
        stated_in=licence.where if licence else None,
        commercial=allows_commercial_use(licence.name if licence else None),
        sha256=digest,
        usable=not why,
        why=why,
    )


def _licence(folder: Path, root: Path, config: dict[str, Any]) -> Stated | None:
    """The licence stated in the folder, else in one above it that belongs to the search."""
    found = stated_licence(folder, config)
    while found is None and folder != root:
        folder = folder.parent
        found = stated_licence(folder, {})
    return found


def _architecture(folder: Path, config: dict[str, Any]) -> str:
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    if "model_type" in config:
        return str(config["model_type"])
    if is_plain_weights(folder):
        try:
            return type(read_known(folder).spec).__name__
        except ModelError:
            return "unknown"
    return "unknown"


def _why_unusable(folder: Path, config: dict[str, Any]) -> str:
    """Why a model folder cannot be adapted; empty where it can."""
    from transformers.models.auto import modeling_auto as auto

    is_vision = config.get("model_type") in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    modality = "image" if is_vision or is_plain_weights(folder) else "text"
    try:
        require_encoder(str(folder), modality=modality)
    except ModelError as error:
        return str(error)
    return ""


def _weights(folder: Path) -> tuple[int | None, int, str | None]:
    """Parameters, bytes and sha256 of the weights; of pickled files the first one's hash, and no count."""
    try:
        files = weight_files(folder)
        if files:
            count = sum(checked_header(file).num_parameters for file in files)
            return count, sum(file.stat().st_size for file in files), weights_sha256(folder)
    except ModelError:
        return None, 0, None  # the reason is told as `why`
    others = sorted(file for file in folder.iterdir() if file.suffix in (*PICKLES, ".safetensors") and file.is_file())
    size = sum(file.stat().st_size for file in others)
    return None, size, file_sha256(others[0]) if others else None
