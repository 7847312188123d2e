"""Plain networks to be trained from scratch: for tables, for small images, and a pair of players for GANs.

The weights are a function of the seed. A network remembers its spec, so that its folder can say how to build it again.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from regraft.config.catalogue import find
from regraft.config.spec import Named
from regraft.errors import ModelError


class Network(Named):
    """A spec that builds a network for examples of one shape."""

    family: ClassVar[str] = "network"

    def build(self, input_shape: tuple[int, ...], num_outputs: int, *, seed: int = 0) -> PlainNetwork:
        """The network for examples of `input_shape` (without the batch dimension), with weights drawn from `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.make(tuple(input_shape), num_outputs)
        network.spec = {
            "name": type(self).__name__,
            "fields": self.model_dump(mode="json"),
            "input_shape": list(input_shape),
            "num_outputs": num_outputs,
        }
        return network

    def make(self, input_shape: tuple[int, ...], num_outputs: int) -> PlainNetwork:
        """The network with weights from torch's default generator, which `build` has seeded."""
        raise NotImplementedError


class PlainNetwork(nn.Module):
    """A network called on `x`. `spec` says how it was built, as JSON."""

    inputs: tuple[str, ...] = ("x",)
    spec: dict[str, Any]


def rebuilt(spec: dict[str, Any], *, seed: int = 0) -> PlainNetwork:
    """The network that a `spec` attribute describes, with fresh weights drawn from `seed`."""
    cls = find("network", str(spec["name"]))
    if not issubclass(cls, Network):
        raise ModelError(f"{spec['name']!r} is no network of regraft, so it cannot be built again")
    return cls(**spec["fields"]).build(tuple(spec["input_shape"]), spec["num_outputs"], seed=seed)


class Residual(nn.Module):
    """x + Linear(Dropout(GELU(Linear(LayerNorm(x))))), (N, width) -> (N, width)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape as `x`."""
        return x + self.down(self.dropout(nn.functional.gelu(self.up(self.norm(x)))))


class ResidualMLP(PlainNetwork):
    """Rows (N, F), or anything that flattens to them, -> logits (N, C)."""

    def __init__(self, num_inputs: int, num_outputs: int, *, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Linear(num_inputs, width)
        self.blocks = nn.ModuleList(Residual(width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C)."""
        hidden = self.stem(x if x.ndim == 2 else x.flatten(1))
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden))


class MLP(Network):
    """Residual blocks with layer norm on the columns of a table (Gorishniy et al. 2021, arXiv:2106.11959, section 3.2).

    Attributes:
        width: of the hidden layers; each block is twice as wide inside.
        depth: number of residual blocks.
        dropout: inside each block.
    """

    width: int = Field(128, ge=1)
    depth: int = Field(3, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)

    def make(self, input_shape: tuple[int, ...], num_outputs: int) -> ResidualMLP:
        """Takes examples of any shape, flattened."""
        num_inputs = math.prod(input_shape)
        return ResidualMLP(num_inputs, num_outputs, width=self.width, depth=self.depth, dropout=self.dropout)


class ConvBlock(nn.Module):
    """ReLU(shortcut(x) + BN(Conv(ReLU(BN(Conv(x)))))), (N, C, H, W) -> (N, C', H / stride, W / stride)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        plain = channels == width and stride == 1
        self.shortcut = nn.Identity() if plain else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The map, halved where the stride is 2."""
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.shortcut(x) + self.norm2(self.conv2(inner)))


class SmallConvNet(PlainNetwork):
    """Images (N, C, H, W) -> logits (N, K)."""

    def __init__(self, channels: int, num_outputs: int, *, width: int, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        plan = [(width, width, 1), (width, width, 1)]
        plan += [(width, 2 * width, 2), (2 * width, 2 * width, 1), (2 * width, 4 * width, 2), (4 * width, 4 * width, 1)]
        self.blocks = nn.ModuleList(ConvBlock(*entry) for entry in plan)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4 * width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        hidden = self.stem(x)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.dropout(hidden.mean(dim=(2, 3))))


class ConvNet(Network):
    """A small residual network (He et al. 2016, arXiv:1512.03385, section 4.2) for images from 8 x 8 pixels.

    Attributes:
        width: channels of the first two blocks; twice and four times as many after that.
        dropout: before the head.
    """

    width: int = Field(32, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)

    def make(self, input_shape: tuple[int, ...], num_outputs: int) -> SmallConvNet:
        """Takes images of `input_shape` (C, H, W)."""
        if len(input_shape) != 3:
            raise ModelError(f"ConvNet takes images (C, H, W), got examples of shape {tuple(input_shape)}; use MLP")
        return SmallConvNet(input_shape[0], num_outputs, width=self.width, dropout=self.dropout)


class Pair(PlainNetwork):
    """A generator, noise (N, latent) -> examples (N, *shape), and a discriminator, examples -> logits (N, 1)."""

    def __init__(self, shape: tuple[int, ...], *, latent: int, width: int) -> None:
        super().__init__()
        size = math.prod(shape)
        self.latent, self.shape = latent, shape
        self.generator = nn.Sequential(
            nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, size),
            nn.Unflatten(1, shape),
        )  # fmt: skip
        self.discriminator = nn.Sequential(
            nn.Flatten(), nn.Linear(size, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2),
            nn.Linear(width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """The discriminator's logits (N, 1): above 0 for what it takes for real."""
        return self.discriminator(x)


class GenerativePair(Network):
    """Two players of a GAN on rows or small images.

    Attributes:
        latent: numbers of noise the generator starts from.
        width: of the hidden layers of both.
    """

    latent: int = Field(16, ge=1)
    width: int = Field(128, ge=1)

    def make(self, input_shape: tuple[int, ...], num_outputs: int) -> Pair:
        """Takes and makes examples of any shape; `num_outputs` has no meaning here."""
        return Pair(input_shape, latent=self.latent, width=self.width)
