"""`preprocessor_config.json` of an image model as the options of an `ImagePreprocessor`, without transformers or torchvision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regraft.errors import ModelError

# what changes pixels and is not done here, with the value that switches it off
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "do_flip_channel_order": (None, False),
    "rescale_offset": (None, False),
    "do_pad": (None, False),
    "do_thumbnail": (None, False),
    "do_align_long_axis": (None, False),
    "do_color_quantize": (None, False),
    "crop_mode": (None, "center"),
}


def image_options(folder: Path) -> dict[str, Any]:
    """Fields of `ImagePreprocessor` for a transformers model folder.

    Raises:
        ModelError: no readable `preprocessor_config.json`, or it asks for something that is not done here.
    """
    file = folder / "preprocessor_config.json"
    if not file.exists():
        raise ModelError(f"{folder} has no preprocessor_config.json, so how its images must look is not known")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is not JSON: {error}") from None
    return options_from_config(config, name=str(file))


def options_from_config(config: Mapping[str, Any], *, name: str) -> dict[str, Any]:
    """Fields of `ImagePreprocessor` for the content of a `preprocessor_config.json` called `name`."""
    for key, off in UNSUPPORTED.items():
        if config.get(key) not in off:
            raise ModelError(f"{name}: {key} = {config[key]!r} is not supported; its images cannot be prepared")
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    if kind.startswith("Levit"):
        raise ModelError(f"{name}: {kind} is not supported; its images cannot be prepared")
    resize, crop = _geometry(config, name, convnext=kind.startswith("ConvNext"), square=_square_by_default(kind))
    size = crop or resize
    if not isinstance(size, tuple):
        raise ModelError(
            f"{name}: the size of the model's input is not fixed; `size` or `crop_size` must give both sides"
        )
    normalise = config.get("do_normalize", True)
    return {
        "size": size,
        "resize": resize,
        "resample": int(config.get("resample", 3 if kind.startswith(("ConvNext", "Deit", "DeiT")) else 2)),
        "scale": float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
        "mean": tuple(map(float, config["image_mean"])) if normalise else (0.0,),
        "std": tuple(map(float, config["image_std"])) if normalise else (1.0,),
        "num_channels": len(config.get("image_mean") or (0, 0, 0)),
    }


def _square_by_default(kind: str) -> bool:
    """Is a single number as size both sides (ViT, Swin), or the shorter one (those that crop afterwards)?"""
    return not kind.startswith(("MobileNet", "MobileViT", "ConvNext", "CLIP", "Bit", "Poolformer", "PoolFormer"))


def _geometry(
    config: Mapping[str, Any], name: str, *, convnext: bool, square: bool
) -> tuple[tuple[int, int] | int | None, tuple[int, int] | None]:
    """What to resize to (both sides, or the shorter one, or not at all) and what to crop to (or not)."""
    if "size" not in config and config.get("do_resize", True):
        raise ModelError(f"{name}: `size` is missing, so the size of the model's input is not known")
    size = config.get("size")
    resize: tuple[int, int] | int | None = _size(size, name, square) if config.get("do_resize", True) else None
    if convnext and isinstance(resize, int):
        # ConvNext: below 384 the shorter side becomes size / crop_pct, then size x size is cut out; from 384 on, no crop
        if resize >= 384:
            return (resize, resize), None
        return int(resize / (config.get("crop_pct") or 224 / 256)), (resize, resize)
    if not config.get("do_center_crop", False):
        return resize, None
    cut = _size(config.get("crop_size"), name, True)
    return resize, cut if isinstance(cut, tuple) else None


def _size(value: Any, name: str, square: bool) -> tuple[int, int] | int:
    """{"height", "width"} or a number -> both sides; {"shortest_edge"} -> that number."""
    if isinstance(value, Mapping):
        if value.get("height") and value.get("width"):
            return int(value["height"]), int(value["width"])
        if value.get("shortest_edge") and not value.get("longest_edge"):
            return int(value["shortest_edge"])
    elif isinstance(value, int):
        return (value, value) if square else value
    elif isinstance(value, list | tuple) and len(value) == 2:
        return int(value[0]), int(value[1])
    raise ModelError(f"{name}: the size {value!r} is not understood; it must be height and width or a shortest edge")
