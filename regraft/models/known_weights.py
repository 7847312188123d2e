"""Published weights without a configuration: which network they are of is read off the names and shapes of the tensors.

ResNet, VGG, GoogLeNet (Inception) and SqueezeNet under the names they have in torchvision, and ResNets for CIFAR-10.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regraft.errors import ModelError
from regraft.models.backbone import Backbone, plain_backbone
from regraft.models.conv_networks import VGG, Inception, ResNet, SqueezeNet
from regraft.models.headers import load_tensors
from regraft.models.networks import Network, PlainNetwork

State = Mapping[str, Tensor]
WEIGHTS = "model.safetensors"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which published weights are normalised by


@dataclass(frozen=True, kw_only=True)
class Known:
    """A network that weights are of.

    Attributes:
        spec: builds it.
        state: the weights under its names.
        channels: of its images.
        classes: it was trained for.
        side: of the images it was trained on, in pixels.
    """

    spec: Network
    state: dict[str, Tensor]
    channels: int
    classes: int
    side: int

    def build(self) -> PlainNetwork:
        """The network with its weights, in eval mode."""
        network = self.spec.build((self.channels, self.side, self.side), self.classes)
        network.load_state_dict(self.state)
        return network.eval()


def is_plain_weights(folder: Path) -> bool:
    """Does a folder hold weights and no configuration of transformers?"""
    return (folder / WEIGHTS).is_file() and not (folder / "config.json").is_file()


def read_known(folder: Path) -> Known:
    """The network of a folder of plain weights; a ModelError where they are of none that is known here."""
    state = load_tensors(folder / WEIGHTS)
    found = recognised(state)
    if found is None:
        some = ", ".join(list(state)[:3])
        raise ModelError(
            f"{folder} has no config.json, and its tensors ({some}, ...) are of no ResNet, VGG, GoogLeNet or SqueezeNet; "
            "give a folder written by save_pretrained, or load the module yourself and pass it to `regraft.adapt`"
        )
    return found


def recognised(state: State) -> Known | None:
    """The network that tensors are of, by their names and shapes; None where they fit none."""
    for attempt in (_resnet, _squeezenet, _vgg, _inception):
        try:
            found = attempt(state)
            if found is None:
                continue
            with torch.device("meta"):
                wanted = found.spec.make((found.channels, found.side, found.side), found.classes).state_dict()
        except (KeyError, IndexError, ValueError):
            continue  # a name is missing that this family has
        if {name: value.shape for name, value in wanted.items()} == {n: v.shape for n, v in found.state.items()}:
            return found
    return None


def known_backbone(folder: Path, *, name: str, licence: str | None) -> Backbone:
    """The network of a folder of plain weights, without its head."""
    found = read_known(folder)
    generator = torch.Generator().manual_seed(0)
    example = torch.rand((2, found.channels, found.side, found.side), generator=generator)
    made = plain_backbone(found.build(), example, modality="image", name=name, licence=licence)
    return Backbone(
        module=made.module, name=name, modality="image", inputs=made.inputs, example=made.example, source=str(folder),
        licence=licence,
    )  # fmt: skip


def usual_images(folder: Path) -> dict[str, Any] | None:
    """Fields of an `ImagePreprocessor` for a folder of plain weights; None where it is none.

    Published weights take RGB normalised by the mean and deviation of ImageNet, at the size they were trained on; those of
    GoogLeNet were ported from another framework and take values from -1 to 1 (torchvision's `transform_input`).
    """
    if not is_plain_weights(folder):
        return None
    known = read_known(folder)
    side, ported = known.side, isinstance(known.spec, Inception)
    mean, std = ((0.5,) * 3, (0.5,) * 3) if ported else (MEAN, STD)
    size = {"size": (side, side), "resize": (side, side), "resample": 2}
    return size | {"scale": 1 / 255, "mean": mean, "std": std, "num_channels": 3, "key": "x"}


# ---- families


def _renamed(state: State, rename: Callable[[str], str | None]) -> dict[str, Tensor]:
    """The tensors under other names; those that get None are left out."""
    pairs = ((rename(name), value) for name, value in state.items())
    return {name: value for name, value in pairs if name is not None}


def _numbers(state: State, pattern: str) -> list[int]:
    """Sorted numbers that the group of a pattern takes over all names."""
    return sorted({int(found[1]) for name in state if (found := re.fullmatch(pattern, name))})


def _counted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the batch counters that some files leave out."""
    for name in [name for name in state if name.endswith("running_mean")]:
        state.setdefault(name.removesuffix("running_mean") + "num_batches_tracked", torch.tensor(0))
    return state


def _resnet(state: State) -> Known | None:
    head = next((name for name in ("fc", "linear") if f"{name}.weight" in state), None)
    stages = _numbers(state, r"layer(\d+)\.0\.conv1\.weight")
    if head is None or not stages:
        return None
    counts = tuple(len(_numbers(state, rf"layer{stage}\.(\d+)\.conv1\.weight")) for stage in stages)
    first = state["conv1.weight"]
    large = first.shape[-1] == 7
    spec = ResNet(
        blocks=counts,
        width=first.shape[0],
        bottleneck="layer1.0.conv3.weight" in state,
        stem="large" if large else "small",
        shortcut="conv" if any(".downsample." in name for name in state) else "pad",
    )
    named = _renamed(state, lambda name: re.sub(rf"^{head}\.", "head.", name))
    return _known(spec, named, first, named["head.weight"], 224 if large else 32)


def _vgg(state: State) -> Known | None:
    found = [i for i in _numbers(state, r"features\.(\d+)\.weight") if state[f"features.{i}.weight"].ndim == 4]
    linear = _numbers(state, r"classifier\.(\d+)\.weight")
    if not found or not linear or state[f"classifier.{linear[0]}.weight"].ndim != 2:
        return None
    norm = "features.1.running_mean" in state
    step = 3 if norm else 2  # convolution, BatchNorm, ReLU; a pooling layer makes the gap larger
    stages: list[list[int]] = [[]]
    places: dict[str, str] = {}
    for order, index in enumerate(found):
        stages[-1].append(state[f"features.{index}.weight"].shape[0])
        places |= {f"features.{index}.": f"blocks.{order}.conv.", f"features.{index + 1}.": f"blocks.{order}.norm."}
        if order + 1 < len(found) and found[order + 1] - index > step:
            stages.append([])
    for order, index in enumerate(linear[:-1]):
        places[f"classifier.{index}."] = f"hidden.linear{order}."
    places[f"classifier.{linear[-1]}."] = "head."
    named = _renamed(state, lambda name: _moved(name, places))
    hidden = tuple(state[f"classifier.{index}.weight"].shape[0] for index in linear[:-1])
    grid = round((state[f"classifier.{linear[0]}.weight"].shape[1] / stages[-1][-1]) ** 0.5)
    spec = VGG(stages=tuple(map(tuple, stages)), hidden=hidden, grid=grid, norm=norm, dropout=0.5)
    side = max(32, grid * 2 ** len(stages))
    return _known(spec, named, state[f"features.{found[0]}.weight"], named["head.weight"], side)


def _moved(name: str, places: Mapping[str, str]) -> str | None:
    """The name with its beginning exchanged; None where no beginning is known."""
    prefix = ".".join(name.split(".")[:2]) + "."
    return places[prefix] + name.removeprefix(prefix) if prefix in places else None


def _inception(state: State) -> Known | None:
    blocks = [
        found.groups()
        for name in state
        if (found := re.fullmatch(r"inception(\d)([a-z])\.branch1\.conv\.weight", name))
    ]
    if not blocks:
        return None
    stages: dict[str, list[tuple[int, ...]]] = {}
    order: dict[str, str] = {}
    for number, (stage, letter) in enumerate(sorted(blocks)):
        prefix = f"inception{stage}{letter}."
        names = ("branch1", "branch2.0", "branch2.1", "branch3.0", "branch3.1", "branch4.1")
        stages.setdefault(stage, []).append(tuple(state[f"{prefix}{name}.conv.weight"].shape[0] for name in names))
        order[prefix] = f"blocks.{number}."

    def rename(name: str) -> str | None:
        if name.startswith("aux"):
            return None  # heads that help training only
        prefix, _, rest = name.partition(".")
        return order.get(f"{prefix}.", f"{'head' if prefix == 'fc' else prefix}.") + rest

    named = _renamed(state, rename)
    stem = tuple(state[f"conv{number}.conv.weight"].shape[0] for number in (1, 2, 3))
    spec = Inception(stem=stem, stages=tuple(map(tuple, stages.values())), dropout=0.2)  # type: ignore[arg-type]
    return _known(spec, named, state["conv1.conv.weight"], named["head.weight"], 224)


def _squeezenet(state: State) -> Known | None:
    fires = _numbers(state, r"features\.(\d+)\.squeeze\.weight")
    if not fires:
        return None
    widths = tuple(
        tuple(state[f"features.{index}.{part}.weight"].shape[0] for part in ("squeeze", "expand1x1", "expand3x3"))
        for index in fires
    )
    before = [1, *fires]  # the convolution and its ReLU have the numbers 0 and 1
    pooled = tuple(order for order, index in enumerate(fires) if index - before[order] > 1)
    stem = state["features.0.weight"]
    places = {f"features.{index}.": f"blocks.{order}." for order, index in enumerate(fires)}
    places |= {"features.0.": "stem.", "classifier.1.": "head."}
    named = _renamed(state, lambda name: _moved(name, places))
    named["head.weight"] = named["head.weight"].flatten(1)  # a 1x1 convolution is a linear layer at every point
    spec = SqueezeNet(width=stem.shape[0], size=stem.shape[-1], fires=widths, pooled=pooled)  # type: ignore[arg-type]
    return _known(spec, named, stem, named["head.weight"], 227 if stem.shape[-1] == 7 else 224)


def _known(spec: Network, state: dict[str, Tensor], stem: Tensor, head: Tensor, side: int) -> Known:
    return Known(spec=spec, state=_counted(state), channels=stem.shape[1], classes=head.shape[0], side=side)
