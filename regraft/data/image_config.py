"""`preprocessor_config.json` of an image model as the options of an `ImagePreprocessor`, without transformers or torchvision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regraft.config.plain_json import NotPlain, plain_json
from regraft.errors import ModelError

LARGEST = 1 << 20  # bytes of the file
MOST_PIXELS = 8192  # of a side of a model's input

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

    A folder of plain weights of a known network without such a file gets the usual options of ImageNet.

    Raises:
        ModelError: no readable `preprocessor_config.json`, or it asks for something that is not done here.
    """
    file = folder / "preprocessor_config.json"
    if not file.exists():
        from regraft.models.known_weights import usual_images  # torch is not needed where the file is there

        usual = usual_images(folder)
        if usual is not None:
            return usual
        raise ModelError(f"{folder} has no preprocessor_config.json, so how its images must look is not known")
    try:
        config = plain_json(file.read_bytes(), largest=LARGEST, finite=False)
    except (OSError, NotPlain) as error:
        raise ModelError(f"{file} is not JSON that can be read: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{file} must hold an object of options, and holds a {type(config).__name__}")
    return options_from_config(config, name=str(file))


def options_from_config(config: Mapping[str, Any], *, name: str) -> dict[str, Any]:
    """Fields of `ImagePreprocessor` for the content of a `preprocessor_config.json` called `name`.

    Raises:
        ModelError: it asks for something that is not done here, or a value is missing, of another type or beyond bounds.
    """
    try:
        options = _options(config, name)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ModelError(f"{name} is not as such a file must be ({said}); fetch the model again") from None
    _check(options, name)
    return options


def _check(options: Mapping[str, Any], name: str) -> None:
    """ModelError where a value is beyond what any model of images asks for."""
    resize = options["resize"]
    sides = [*options["size"], *(resize if isinstance(resize, tuple) else () if resize is None else (resize,))]
    if not all(1 <= side <= MOST_PIXELS for side in sides):
        raise ModelError(f"{name}: sizes must be 1 to {MOST_PIXELS:,} pixels, got {sides}")
    if options["num_channels"] not in (1, 3):
        raise ModelError(f"{name}: images have 1 or 3 channels, and image_mean has {options['num_channels']} numbers")
    numbers = (*options["mean"], *options["std"], options["scale"])
    lengths = {len(options["mean"]), len(options["std"])}
    if not all(map(math.isfinite, numbers)) or 0 in options["std"] or not lengths <= {1, options["num_channels"]}:
        raise ModelError(
            f"{name}: image_mean, image_std and rescale_factor must be finite numbers, one for each channel"
        )
    if options["resample"] not in range(6):
        raise ModelError(f"{name}: resample must be one of Pillow's numbers 0 to 5, got {options['resample']}")


def _options(config: Mapping[str, Any], name: str) -> dict[str, Any]:
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
