"""What a model folder must not hold: code to be run on loading, and weights in a format that runs code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regraft.errors import ModelError

ATTENTION = {"eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention"}
CODE_KEYS = {"auto_map", "trust_remote_code", "custom_pipelines"}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".th", ".h5", ".msgpack")
LARGEST_JSON = 32 * 2**20  # bytes; a config with 100,000 labels has about 5 MB


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
        value = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ModelError(f"{file} is not JSON ({error}); fetch the model again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{file} must hold a JSON object, got a {type(value).__name__}; fetch the model again")
    return value


def checked_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model folder that holds no way to run code; a ModelError with the reason otherwise."""
    config = read_json(folder / "config.json")
    for path, key, value in _entries(config, "config.json"):
        if key in CODE_KEYS and value not in (None, False, {}):
            raise ModelError(
                f"{folder}: {path} asks for code of the model's author to be run, which regraft never does; use another model"
            )
        if "attn_implementation" in key or "experts_implementation" in key or key == "use_kernels":
            _check_implementation(folder, path, value)
    if config.get("quantization_config"):
        raise ModelError(
            f"{folder} holds quantised weights, which cannot be adapted; give the fp32, fp16 or bf16 model"
        )
    return config


def checked_weights(folder: Path) -> list[Path]:
    """The safetensors files of a model folder; a ModelError if there are none or if their index points elsewhere."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        names = sorted({str(name) for name in dict(read_json(index).get("weight_map", {})).values()})
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors") or not (folder / name).is_file():
                raise ModelError(f"{index} must name safetensors files beside it, got {name!r}; fetch the model again")
        return [folder / name for name in names]
    pickles = sorted(file.name for file in folder.iterdir() if file.name.endswith(PICKLES))
    if pickles:
        raise ModelError(
            f"{folder} has its weights only as {pickles[0]}, a format that can run code when it is loaded; "
            "convert them to model.safetensors first"
        )
    raise ModelError(f"{folder} has no model.safetensors; give a folder written by save_pretrained")


def checked_folder(folder: Path) -> dict[str, Any]:
    """The config of a folder whose config and weights are safe to load, and which is no adapter."""
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} is an adapter, not a whole model; give the folder of the model it was trained on")
    config = checked_config(folder)
    checked_weights(folder)
    return config


def _check_implementation(folder: Path, path: str, value: Any) -> None:
    """A ModelError unless an implementation is one that transformers has itself; others are fetched and run from a hub."""
    values = value.values() if isinstance(value, dict) else (value,)
    for item in values:
        if item in (None, False, "eager", "batched_mm", "grouped_mm") or (isinstance(item, str) and item in ATTENTION):
            continue
        raise ModelError(
            f"{folder}: {path} is {item!r}, which names code outside transformers; remove it or use another model"
        )


def _entries(value: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    """(path, key, value) of every key of nested mappings and lists."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"{path}: {key}", str(key), item
            yield from _entries(item, f"{path}: {key}")
    elif isinstance(value, list):
        for item in value:
            yield from _entries(item, path)
