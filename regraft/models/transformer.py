"""A transformer to be trained from scratch, on patches of small images or the columns of a table.

Where its normalisation stands and how its branches are scaled decides how deep it can be: both are fields.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from regraft.errors import ModelError
from regraft.models.networks import Network, PlainNetwork

NormPlace = Literal["pre", "post"]
Scaling = Literal["none", "depth", "deepnorm"]
DEVIATION = 0.02  # of initial weights, as in GPT-2


class TransformerBlock(nn.Module):
    """Self-attention and a feed-forward layer with a residual connection around each, (N, L, D) -> (N, L, D).

    pre:  x + f(LN(x)), which leaves a straight way for gradients (Xiong et al., 2020, arXiv:2002.04745).
    post: LN(skip * x + f(x)), as in Vaswani et al., 2017, arXiv:1706.03762; `skip` is above 1 in DeepNorm.
    """

    def __init__(self, width: int, heads: int, *, dropout: float, norm: NormPlace, skip: float) -> None:
        super().__init__()
        self.place, self.skip, self.heads = norm, skip, heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape as `x`."""
        if self.place == "pre":
            x = x + self.dropout(self.attended(self.attention_norm(x)))
            return x + self.dropout(self.fed(self.mlp_norm(x)))
        x = self.attention_norm(self.skip * x + self.dropout(self.attended(x)))
        return self.mlp_norm(self.skip * x + self.dropout(self.fed(x)))

    def attended(self, x: Tensor) -> Tensor:
        """What the tokens say to each other, (N, L, D)."""
        rows, tokens, width = x.shape
        split = self.query_key_value(x).view(rows, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.attention_out(mixed.transpose(1, 2).reshape(rows, tokens, width))

    def fed(self, x: Tensor) -> Tensor:
        """What each token makes of itself, (N, L, D)."""
        return self.down(nn.functional.gelu(self.up(x)))

    def branch_outputs(self) -> tuple[nn.Linear, nn.Linear]:
        """The last layers of the two branches."""
        return self.attention_out, self.down


class Patches(nn.Module):
    """Images (N, C, H, W) as tokens (N, L, D), one for each square of `side` pixels."""

    def __init__(self, channels: int, width: int, side: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, width, side, stride=side)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens row by row."""
        return self.projection(x).flatten(2).transpose(1, 2)


class Numbers(nn.Module):
    """Rows (N, F), or anything that flattens to them, as tokens (N, F, D): each column's direction times its value.

    The numerical feature tokenizer of Gorishniy et al., 2021, arXiv:2106.11959, section 3.3; the positions are its biases.
    """

    def __init__(self, columns: int, width: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.randn(columns, width) / math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        """A token for each column."""
        return x.flatten(1)[:, :, None] * self.directions


class SmallTransformer(PlainNetwork):
    """Images (N, C, H, W) or rows (N, F) -> logits (N, K), of the mean over all tokens."""

    def __init__(
        self, tokens: nn.Module, count: int, num_outputs: int, *, width: int, blocks: list[TransformerBlock]
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.positions = nn.Parameter(DEVIATION * torch.randn(count, width))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width) if blocks[0].place == "pre" else nn.Identity()
        self.head = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        hidden = self.tokens(x) + self.positions
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden).mean(dim=1))


class Transformer(Network):
    """A transformer encoder on patches of small images or on the columns of a table, whose normalisation can be placed.

    With `norm: pre` deep ones train without warm-up (Xiong et al., 2020, arXiv:2002.04745); with `post`, the original order, they
    need it, or `residual_scale: deepnorm`. `depth` divides the initial weights that end a residual branch by sqrt(2 L), so that
    the variance of what the 2 L branches add up to does not grow with the depth L (GPT-2, Radford et al., 2019, section 2.3).
    `deepnorm` multiplies what goes past a branch by (2 L)^(1/4) and the branch's initial weights by (8 L)^(-1/4), and needs
    post-norm (Wang et al., 2022, arXiv:2203.00555, figure 2, encoder).

    Attributes:
        width: of the tokens.
        depth: number of blocks, L.
        heads: of attention; they divide the width.
        patch: side of the squares that images are cut into, in pixels; it divides both sides of an image.
        norm: before each branch, or after the sum.
        residual_scale: how residual branches are scaled.
        dropout: of each branch.
    """

    width: int = Field(64, ge=1)
    depth: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    patch: int = Field(4, ge=1)
    norm: NormPlace = "pre"
    residual_scale: Scaling = "depth"
    dropout: float = Field(0.1, ge=0, lt=1)

    def make(self, input_shape: tuple[int, ...], num_outputs: int) -> SmallTransformer:
        """Takes images of `input_shape` (C, H, W), or examples of any other shape, flattened."""
        self._check(input_shape)
        if len(input_shape) == 3:
            channels, height, width = input_shape
            count = (height // self.patch) * (width // self.patch)
            tokens: nn.Module = Patches(channels, self.width, self.patch)
        else:
            count = math.prod(input_shape)
            tokens = Numbers(count, self.width)
        skip = (2 * self.depth) ** 0.25 if self.residual_scale == "deepnorm" else 1.0
        blocks = [
            TransformerBlock(self.width, self.heads, dropout=self.dropout, norm=self.norm, skip=skip)
            for _ in range(self.depth)
        ]
        for block in blocks:
            self._start(block)
        return SmallTransformer(tokens, count, num_outputs, width=self.width, blocks=blocks)

    def _check(self, input_shape: tuple[int, ...]) -> None:
        if self.width % self.heads:
            raise ModelError(f"Transformer.heads: must divide the width {self.width}, got {self.heads}")
        if self.residual_scale == "deepnorm" and self.norm != "post":
            raise ModelError(
                "Transformer.residual_scale: deepnorm scales what a later norm sees, so it needs `norm: post`"
            )
        if len(input_shape) == 3 and any(side % self.patch for side in input_shape[1:]):
            raise ModelError(
                f"Transformer.patch: must divide both sides of the images, {input_shape[1]} x {input_shape[2]} pixels, got "
                f"{self.patch}"
            )

    def _start(self, block: TransformerBlock) -> None:
        """Initial weights of a block: Xavier's, those that end a branch scaled; biases 0."""
        linear = [module for module in block.modules() if isinstance(module, nn.Linear)]
        scale = {"none": 1.0, "depth": (2 * self.depth) ** -0.5, "deepnorm": (8 * self.depth) ** -0.25}[
            self.residual_scale
        ]
        for layer in linear:
            nn.init.xavier_normal_(layer.weight, gain=1.0)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            for layer in block.branch_outputs():
                layer.weight.mul_(scale)
            if self.residual_scale == "deepnorm":  # of values and the feed-forward layer too
                block.query_key_value.weight[2 * self.width :].mul_(scale)
                block.up.weight.mul_(scale)
