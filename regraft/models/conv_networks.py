"""Convolutional networks of the textbooks: ResNet, VGG, Inception (GoogLeNet) and SqueezeNet, of any size.

They are built fresh from a recipe, or hold published weights (`models.known_weights`). Each ends in a linear layer `head`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from regraft.errors import ModelError
from regraft.models.networks import Network, PlainNetwork


def channels_of(input_shape: tuple[int, ...], name: str) -> int:
    """Channels of images (C, H, W); a ModelError for examples of another shape."""
    if len(input_shape) != 3:
        raise ModelError(f"{name} takes images (C, H, W), got examples of shape {tuple(input_shape)}; use MLP")
    return input_shape[0]


# ---- ResNet


class PadShortcut(nn.Module):
    """Every `stride`-th point, with zero channels added on both sides: option A of He et al. 2016, without weights."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.before, self.stride = (width - channels) // 2, stride
        self.after = width - channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, width, H / stride, W / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1 as a bottleneck, each with BatchNorm, and a shortcut around them."""

    def __init__(self, channels: int, width: int, stride: int, *, bottleneck: bool, pad: bool) -> None:
        super().__init__()
        out = 4 * width if bottleneck else width
        self.conv1 = nn.Conv2d(channels, width, 1 if bottleneck else 3, 1 if bottleneck else stride, 0 if bottleneck else 1,
                               bias=False)  # fmt: skip
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride if bottleneck else 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        if bottleneck:
            self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample: nn.Module = nn.Identity()
        if (stride != 1 or channels != out) and pad:
            self.downsample = PadShortcut(channels, out, stride)
        elif stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """relu(shortcut(x) + F(x)). He et al. 2016, arXiv:1512.03385, figures 2 and 5; the stride is in the 3x3 convolution."""
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, "conv3"):
            inner = self.bn3(self.conv3(torch.relu(inner)))
        return torch.relu(inner + self.downsample(x))


class ResidualNetwork(PlainNetwork):
    """Images (N, C, H, W) -> logits (N, K)."""

    def __init__(self, channels: int, num_outputs: int, spec: ResNet) -> None:
        super().__init__()
        large = spec.stem == "large"
        self.conv1 = nn.Conv2d(
            channels, spec.width, 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False
        )
        self.bn1 = nn.BatchNorm2d(spec.width)
        self.pool: nn.Module = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        before = spec.width
        self.stages = len(spec.blocks)
        for stage, count in enumerate(spec.blocks):
            width = spec.width * 2**stage
            layers: list[nn.Module] = []
            for position in range(count):
                stride = 2 if stage and position == 0 else 1
                pad = spec.shortcut == "pad"
                layers.append(ResidualBlock(before, width, stride, bottleneck=spec.bottleneck, pad=pad))
                before = 4 * width if spec.bottleneck else width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.head = nn.Linear(before, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.head(x.mean(dim=(2, 3)))


class ResNet(Network):
    """Residual blocks in stages of doubling width (He et al. 2016, arXiv:1512.03385).

    Attributes:
        blocks: in each stage; (3, 3, 3) with width 16 is ResNet-20 for CIFAR, (2, 2, 2, 2) with width 64 ResNet-18.
        width: of the first stage.
        bottleneck: 1x1, 3x3, 1x1 blocks that are four times as wide outside, as in ResNet-50.
        stem: "small", a 3x3 convolution, or "large", 7x7 with stride and pooling, for images from about 64 pixels.
        shortcut: where the shape changes: "conv", a 1x1 convolution, or "pad", zeros.
    """

    blocks: tuple[int, ...] = Field((3, 3, 3), min_length=1)
    width: int = Field(16, ge=1)
    bottleneck: bool = False
    stem: Literal["small", "large"] = "small"
    shortcut: Literal["conv", "pad"] = "conv"

    def make(self, input_shape: tuple[int, ...], num_outputs: int) -> ResidualNetwork:
        """Takes images of `input_shape` (C, H, W)."""
        return ResidualNetwork(channels_of(input_shape, "ResNet"), num_outputs, self)


# ---- VGG


class PlainBlock(nn.Module):
    """A 3x3 convolution, BatchNorm where asked for, ReLU, and max-pooling where a stage ends."""

    def __init__(self, channels: int, width: int, *, norm: bool, pool: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.norm: nn.Module = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.pool: nn.Module = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, width, H, W), halved where it pools."""
        return self.pool(torch.relu(self.norm(self.conv(x))))


class Hidden(nn.Module):
    """Linear layers with ReLU and dropout, (N, F) -> (N, F')."""

    def __init__(self, widths: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        self.count, self.dropout = len(widths) - 1, nn.Dropout(dropout)
        for position, (before, width) in enumerate(pairwise(widths)):
            self.add_module(f"linear{position}", nn.Linear(before, width))

    def forward(self, x: Tensor) -> Tensor:
        """The last layer's output."""
        for position in range(self.count):
            x = self.dropout(torch.relu(self.get_submodule(f"linear{position}")(x)))
        return x


class PlainConvNetwork(PlainNetwork):
    """Images (N, C, H, W) -> logits (N, K)."""

    def __init__(self, channels: int, num_outputs: int, spec: VGG) -> None:
        super().__init__()
        self.grid, before = spec.grid, channels
        blocks: list[nn.Module] = []
        for stage in spec.stages:
            for position, width in enumerate(stage):
                blocks.append(PlainBlock(before, width, norm=spec.norm, pool=position == len(stage) - 1))
                before = width
        self.blocks = nn.ModuleList(blocks)
        widths = (before * spec.grid**2, *spec.hidden)
        self.hidden = Hidden(widths, spec.dropout)
        self.head = nn.Linear(widths[-1], num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        for block in self.blocks:
            x = block(x)
        return self.head(self.hidden(F.adaptive_avg_pool2d(x, self.grid).flatten(1)))


class VGG(Network):
    """3x3 convolutions and pooling, then linear layers (Simonyan and Zisserman 2015, arXiv:1409.1556).

    Attributes:
        stages: widths of the convolutions of each stage; a stage ends with pooling. VGG-16 has (64, 64), (128, 128), then three
            of 256 and twice three of 512.
        hidden: widths of the linear layers before the last; 4096 twice in the paper.
        grid: points a side that they see.
        norm: BatchNorm after each convolution.
        dropout: after each hidden linear layer.
    """

    stages: tuple[tuple[int, ...], ...] = Field(((16, 16), (32, 32), (64, 64)), min_length=1)
    hidden: tuple[int, ...] = (128,)
    grid: int = Field(1, ge=1)
    norm: bool = True
    dropout: float = Field(0.5, ge=0, lt=1)

    def make(self, input_shape: tuple[int, ...], num_outputs: int) -> PlainConvNetwork:
        """Takes images of `input_shape` (C, H, W)."""
        channels, least = channels_of(input_shape, "VGG"), 2 ** len(self.stages)
        if min(input_shape[1:]) < least:
            raise ModelError(
                f"VGG.stages: {len(self.stages)} stages halve images of at least {least} pixels, got {min(input_shape[1:])}; "
                "use fewer stages or larger images"
            )
        return PlainConvNetwork(channels, num_outputs, self)


# ---- Inception


class ConvNorm(nn.Module):
    """Convolution, BatchNorm and ReLU."""

    def __init__(self, channels: int, width: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, size, stride, size // 2, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, width, H / stride, W / stride)."""
        return torch.relu(self.bn(self.conv(x)))


class InceptionBlock(nn.Module):
    """Four branches side by side: 1x1; 1x1 then 3x3; the same once more; pooling then 1x1."""

    def __init__(self, channels: int, widths: tuple[int, ...], *, pool: int) -> None:
        super().__init__()
        one, reduce2, two, reduce3, three, four = widths
        self.pool: nn.Module = nn.MaxPool2d(pool, 2, ceil_mode=True) if pool else nn.Identity()
        self.branch1 = ConvNorm(channels, one, 1)
        self.branch2 = nn.Sequential(ConvNorm(channels, reduce2, 1), ConvNorm(reduce2, two, 3))
        self.branch3 = nn.Sequential(ConvNorm(channels, reduce3, 1), ConvNorm(reduce3, three, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), ConvNorm(channels, four, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Their channels one after another; pooled first where a stage begins."""
        x = self.pool(x)
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


class InceptionNetwork(PlainNetwork):
    """Images (N, C, H, W) -> logits (N, K)."""

    def __init__(self, channels: int, num_outputs: int, spec: Inception) -> None:
        super().__init__()
        first, second, third = spec.stem
        self.conv1, self.conv2 = ConvNorm(channels, first, 7, 2), ConvNorm(first, second, 1)
        self.conv3, before = ConvNorm(second, third, 3), third
        blocks: list[nn.Module] = []
        for stage, members in enumerate(spec.stages):
            for position, widths in enumerate(members):
                last = (
                    stage == len(spec.stages) - 1 and stage > 1
                )  # the last pooling sees 2x2 points, as published weights do
                pool = 0 if position or stage == 0 else 2 if last else 3
                blocks.append(InceptionBlock(before, widths, pool=pool))
                before = widths[0] + widths[2] + widths[4] + widths[5]
        self.blocks, self.dropout = nn.ModuleList(blocks), nn.Dropout(spec.dropout)
        self.head = nn.Linear(before, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        x = F.max_pool2d(self.conv1(x), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.conv3(self.conv2(x)), 3, 2, ceil_mode=True)
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(x.mean(dim=(2, 3))))


class Inception(Network):
    """Inception blocks in stages (Szegedy et al. 2015, arXiv:1409.4842: GoogLeNet), with BatchNorm.

    Attributes:
        stem: widths of the three convolutions before the blocks.
        stages: for each stage its blocks, each with six widths: 1x1; 1x1 and 3x3; 1x1 and 3x3; 1x1 after pooling.
        dropout: before the head.
    """

    stem: tuple[int, int, int] = (16, 16, 32)
    stages: tuple[tuple[tuple[int, int, int, int, int, int], ...], ...] = Field(
        (((16, 16, 24, 4, 8, 8), (24, 24, 32, 8, 16, 8)), ((32, 24, 48, 8, 16, 16), (48, 32, 64, 8, 16, 16))),
        min_length=1,
    )
    dropout: float = Field(0.2, ge=0, lt=1)

    def make(self, input_shape: tuple[int, ...], num_outputs: int) -> InceptionNetwork:
        """Takes images of `input_shape` (C, H, W), from about 64 pixels."""
        return InceptionNetwork(channels_of(input_shape, "Inception"), num_outputs, self)


# ---- SqueezeNet


class Fire(nn.Module):
    """A 1x1 convolution to few channels, then 1x1 and 3x3 ones side by side; pooled first where asked for."""

    def __init__(self, channels: int, widths: tuple[int, int, int], *, pool: bool) -> None:
        super().__init__()
        self.pool: nn.Module = nn.MaxPool2d(3, 2, ceil_mode=True) if pool else nn.Identity()
        self.squeeze = nn.Conv2d(channels, widths[0], 1)
        self.expand1x1 = nn.Conv2d(widths[0], widths[1], 1)
        self.expand3x3 = nn.Conv2d(widths[0], widths[2], 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, widths[1] + widths[2], H, W)."""
        x = torch.relu(self.squeeze(self.pool(x)))
        return torch.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1))


class FireNetwork(PlainNetwork):
    """Images (N, C, H, W) -> logits (N, K)."""

    def __init__(self, channels: int, num_outputs: int, spec: SqueezeNet) -> None:
        super().__init__()
        self.stem, before = nn.Conv2d(channels, spec.width, spec.size, stride=2), spec.width
        blocks: list[nn.Module] = []
        for position, widths in enumerate(spec.fires):
            blocks.append(Fire(before, widths, pool=position in spec.pooled))
            before = widths[1] + widths[2]
        self.blocks, self.dropout = nn.ModuleList(blocks), nn.Dropout(spec.dropout)
        self.head = nn.Linear(before, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K): the head at every point, ReLU, and the mean over points."""
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return torch.relu(self.head(self.dropout(x).flatten(2).transpose(1, 2))).mean(1)


class SqueezeNet(Network):
    """Fire blocks (Iandola et al. 2016, arXiv:1602.07360): AlexNet's accuracy with a fiftieth of its weights.

    Attributes:
        width: of the first convolution.
        size: of its kernel.
        fires: widths of each block: 1x1 to few channels, then 1x1 and 3x3 beside each other.
        pooled: blocks that pool first, counted from 0.
        dropout: before the head.
    """

    width: int = Field(32, ge=1)
    size: int = Field(3, ge=1)
    fires: tuple[tuple[int, int, int], ...] = Field(
        ((8, 32, 32), (8, 32, 32), (16, 64, 64), (16, 64, 64)), min_length=1
    )
    pooled: tuple[int, ...] = (0, 2)
    dropout: float = Field(0.5, ge=0, lt=1)

    def make(self, input_shape: tuple[int, ...], num_outputs: int) -> FireNetwork:
        """Takes images of `input_shape` (C, H, W)."""
        return FireNetwork(channels_of(input_shape, "SqueezeNet"), num_outputs, self)
