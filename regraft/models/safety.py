"""What a model folder must not hold: code to be run on loading, weights in a format that runs code, links to elsewhere.

Everything is checked by regraft before a library of others sees a file of the folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from regraft.config.plain_json import NotPlain, plain_json
from regraft.errors import ModelError
from regraft.models.config_check import Unsafe, check_code, check_config
from regraft.models.headers import Header, checked_header

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".th", ".h5", ".msgpack")
LARGEST_JSON = 32 * 2**20  # bytes; a config with 100,000 labels has about 5 MB
LARGEST_TOKENIZER = 128 * 2**20  # bytes; that of Gemma 3 has 33 MB
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
INDEX = "model.safetensors.index.json"
FREE_LAYERS, FREE_PARAMETERS = (
    32,
    20_000_000,
)  # that a configuration may have more than its weights: heads, shared blocks


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file; a ModelError if it is missing, larger than 32 MiB, not JSON or not an object."""
    if not file.is_file():
        raise ModelError(
            f"{file.parent} has no {file.name}, so it is not a model folder; give one written by save_pretrained"
        )
    if file.stat().st_size > LARGEST_JSON:
        raise ModelError(
            f"{file} must be at most {LARGEST_JSON} bytes, got {file.stat().st_size}; it is not a model's {file.name}"
        )
    try:
        value = plain_json(file.read_bytes(), finite=False)
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror}); copy the whole folder") from None
    except NotPlain as error:
        raise ModelError(f"{file} is not JSON ({error}); fetch the model again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{file} must hold a JSON object, got a {type(value).__name__}; fetch the model again")
    return value


def checked_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model folder that holds no way to run code; a ModelError with the reason otherwise."""
    config = read_json(folder / "config.json")
    try:
        check_config(config, model_types())
    except Unsafe as reason:
        raise ModelError(f"{folder}: {reason}") from None
    checked_beside(folder)
    return config


def checked_beside(folder: Path) -> None:
    """ModelError where a tokenizer's file names code or files elsewhere, or a link leads out of the folder."""
    for file in sorted(folder.iterdir()):
        if file.is_symlink():
            _check_link(file)
    large = folder / "tokenizer.json"
    if large.is_file() and large.stat().st_size > LARGEST_TOKENIZER:
        raise ModelError(f"{large} must be at most {LARGEST_TOKENIZER} bytes, got {large.stat().st_size}")
    for name in BESIDE:
        if not (folder / name).is_file():
            continue
        content = read_json(folder / name)
        try:
            check_code(content, name=name)
        except Unsafe as reason:
            raise ModelError(f"{folder}: {reason}") from None
        if name == "tokenizer_config.json":
            _check_tokenizer(folder, content)


def _check_link(link: Path) -> None:
    """ModelError unless a link stays in its folder or leads to the blobs of a Hugging Face cache."""
    target, folder = link.resolve(), link.parent.resolve()
    if target.is_relative_to(folder):
        return
    if folder.parent.name == "snapshots" and target.is_relative_to(folder.parent.parent / "blobs"):
        return
    raise ModelError(f"{link} is a link that leads out of its folder; put a copy of the file in its place")


def _check_tokenizer(folder: Path, content: Mapping[str, Any]) -> None:
    """ModelError where tokenizer_config.json names a class by path, or files that lie elsewhere."""
    kind = content.get("tokenizer_class")
    if kind is not None and not (isinstance(kind, str) and re.fullmatch(r"\w{1,100}", kind)):
        raise ModelError(f"{folder}: tokenizer_config.json: tokenizer_class must be a name, got {str(kind)[:60]!r}")
    files = [(key, value) for key, value in content.items() if key.endswith("_file") and isinstance(value, str)]
    versions = content.get("fast_tokenizer_files") or []
    files += [("fast_tokenizer_files", str(value)) for value in versions if ".." in str(value) or "/" in str(value)]
    for key, value in files:
        if key == "fast_tokenizer_files" or ("/" in value and Path(value).expanduser().exists()):
            raise ModelError(
                f"{folder}: tokenizer_config.json: {key} names the file {value[:100]!r} elsewhere; remove it"
            )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder; empty if there are none, a ModelError if their index points elsewhere."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not (folder / INDEX).is_file():
        return []
    mapping = read_json(folder / INDEX).get("weight_map")
    names = sorted({str(name) for name in mapping.values()}) if isinstance(mapping, dict) else []
    for name in names or [str(mapping)]:
        if Path(name).name != name or not name.endswith(".safetensors") or not (folder / name).is_file():
            raise ModelError(
                f"{folder / INDEX} must name safetensors files beside it, got {name[:100]!r}; fetch the model again"
            )
    return [folder / name for name in names]


def checked_weights(folder: Path) -> Header:
    """What the safetensors files of a model folder hold together; a ModelError if there are none or one is not sound."""
    files = weight_files(folder)
    if not files:
        raise no_safetensors(folder)
    headers = [checked_header(file) for file in files]
    return Header(
        num_tensors=sum(header.num_tensors for header in headers),
        num_parameters=sum(header.num_parameters for header in headers),
        num_bytes=sum(header.num_bytes for header in headers),
    )


def no_safetensors(folder: Path) -> ModelError:
    """The error of a folder without safetensors files, with the way out."""
    pickles = sorted(file.name for file in folder.iterdir() if file.name.endswith(PICKLES))
    if not pickles:
        return ModelError(f"{folder} has no model.safetensors; give a folder written by save_pretrained")
    return ModelError(
        f"{folder} has its weights only as {pickles[0]}, a format that can run code when it is loaded; give "
        "--set models.main.allow_pickled_weights=true to have its tensors read without running any, and kept as safetensors"
    )


def checked_folder(folder: Path) -> dict[str, Any]:
    """The config of a folder whose config and weights are safe to load, and which is no adapter."""
    config = checked_model_config(folder)
    checked_weights(folder)
    return config


def checked_model_config(folder: Path) -> dict[str, Any]:
    """The config of a folder that is no adapter, and safe to load as far as everything but the weights goes."""
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} is an adapter, not a whole model; give the folder of the model it was trained on")
    return checked_config(folder)


def check_size(folder: Path, config: Any, model_class: Any) -> None:
    """ModelError where the network a configuration describes is far larger than the weights beside it; none is built.

    transformers fills what the weights lack with random numbers, so a small folder could ask for any amount of memory.
    """
    weights = checked_weights(folder)
    layers = getattr(config, "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > weights.num_tensors + FREE_LAYERS:
        raise ModelError(
            f"{folder}: config.json: num_hidden_layers is {layers:,}, but the weights hold {weights.num_tensors:,} tensors; "
            "use another model"
        )
    try:
        with torch.device("meta"):
            network = model_class(config)
    except Exception as error:  # a configuration can make the code of its model fail in any way
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ModelError(f"{folder}/config.json describes no network ({reason}); give another model") from None
    count = sum(parameter.numel() for parameter in {id(p): p for p in network.parameters()}.values())
    if count > 2 * weights.num_parameters + FREE_PARAMETERS:
        raise ModelError(
            f"{folder}/config.json describes a network of {count:,} parameters, but the weights beside it hold "
            f"{weights.num_parameters:,}; fetch the model again"
        )


@cache
def model_types() -> frozenset[str]:
    """The model types that transformers has code for."""
    from transformers.models.auto import configuration_auto

    return frozenset(configuration_auto.CONFIG_MAPPING_NAMES)  # pyright: ignore[reportPrivateImportUsage]
