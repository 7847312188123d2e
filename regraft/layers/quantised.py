"""Frozen linear layers in 8 or 4 bits, made whole again only while they are multiplied with, and a low-rank change beside them.

Dettmers et al. 2023, arXiv:2305.14314, sections 2 and 3: 4-bit NormalFloat in blocks of 64 and double quantisation of the blocks'
scales (here to 8-bit integers rather than 8-bit floats). 8 bits: integers with a scale for each output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.core.seeding import generator
from regraft.errors import ConfigError
from regraft.layers.sharing import M, same_tensors

BLOCK = 64  # weights that share a scale
SCALES = 256  # scales that share a step, where they are quantised too
Bits = Literal[4, 8]


# ---- numbers


def normal_float() -> Tensor:
    """The 16 values of 4-bit NormalFloat in [-1, 1], ascending, fp32: quantiles of the normal distribution, zero among them.

    Dettmers et al., section 3 and appendix E: 8 values upwards from 0 and 7 downwards, at evenly spaced probabilities between 1/2
    and the middle of 1 - 1/32 and 1 - 1/30, divided by the largest.
    """
    top = 1 - (1 / 32 + 1 / 30) / 2
    up = torch.special.ndtri(torch.linspace(0.5, top, 9, dtype=torch.float64))
    down = torch.special.ndtri(torch.linspace(0.5, top, 8, dtype=torch.float64))
    values = torch.cat([-down.flip(0), up[1:]])
    return (values / values.max()).float()


def to_4_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (ceil(n / 128) * 64,) uint8, two a byte, and the largest magnitude of each block of 64 (B,) fp32, of n weights."""
    flat = F.pad(weight.detach().float().flatten(), (0, -weight.numel() % (2 * BLOCK)))
    blocks = flat.view(-1, BLOCK)
    scales = blocks.abs().amax(1)
    values = normal_float().to(flat.device)
    middles = (values[1:] + values[:-1]) / 2
    shares = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(shares, middles, out_int32=True).to(torch.uint8).view(-1, 2)
    return codes[:, 0] << 4 | codes[:, 1], scales


def from_4_bits(codes: Tensor, scales: Tensor, shape: tuple[int, int]) -> Tensor:
    """The weights (fp32) that `to_4_bits` gave codes and scales of."""
    index = torch.stack([codes >> 4, codes & 15], dim=1).view(-1, BLOCK).int()
    values = normal_float().to(codes.device)[index] * scales[:, None]
    return values.flatten()[: shape[0] * shape[1]].view(shape)


def to_8_bits(values: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (R, C) int8 and the step of each row (R, 1) fp32; a value is off by half a step at most."""
    steps = values.detach().float().abs().amax(1, keepdim=True) / 127
    return torch.round(values.detach().float() / steps.clamp(min=torch.finfo(torch.float32).tiny)).to(torch.int8), steps


# ---- layers


class _Product(torch.autograd.Function):
    """x W^T, or x W: the weights are made whole in the forward pass and again in the backward pass, and kept in neither."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, layer: QuantisedLinear, backwards: bool) -> Tensor:
        weight = layer.whole().to(x.dtype)
        return F.linear(x, weight.T if backwards else weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, QuantisedLinear, bool], output: Tensor) -> None:
        x, ctx.layer, ctx.backwards = inputs
        ctx.dtype = x.dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(gradient, ctx.layer, not ctx.backwards).to(ctx.dtype), None, None  # type: ignore[union-attr]


class QuantisedLinear(nn.Module):
    """A frozen linear layer whose weights (out, in) are kept in `bits` bits; its bias stays as it is.

    Args:
        layer: linear, or GPT-2's with weights (in, out).
        bits: 8, a scale for each output; or 4, NormalFloat in blocks of 64.
        double: the blocks' scales are kept in 8 bits too (4 bits only).
    """

    def __init__(self, layer: nn.Module, *, bits: Bits, double: bool = True) -> None:
        super().__init__()
        self.bits: Bits = bits
        self.double_scales, self.turned = double and bits == 4, not isinstance(layer, nn.Linear)
        given = layer.weight
        assert isinstance(given, Tensor)
        weight = given.T if self.turned else given
        self.out_features, self.in_features = weight.shape
        if bits == 8:
            codes, scales = to_8_bits(weight)
        else:
            codes, scales = to_4_bits(weight)
        self.register_buffer("codes", codes)
        if self.double_scales:
            mean = scales.mean()
            padded = F.pad(scales - mean, (0, -len(scales) % SCALES)).view(-1, SCALES)
            scale_codes, steps = to_8_bits(padded)
            self.register_buffer("scale_codes", scale_codes.flatten()[: len(scales)].clone())
            self.register_buffer("scale_steps", steps)
            self.register_buffer("scale_mean", mean)
        else:
            self.register_buffer("scales", scales)
        self.bias: nn.Parameter | None = layer.bias  # type: ignore[assignment]

    def whole(self) -> Tensor:
        """The weights (out, in), fp32."""
        codes: Any = self.codes
        if self.bits == 8:
            return codes.float() * self.scales
        scales: Any = self.block_scales() if self.double_scales else self.scales
        return from_4_bits(codes, scales, (self.out_features, self.in_features))

    def block_scales(self) -> Tensor:
        """The scale of each block (B,), from its own 8 bits."""
        codes: Any = self.scale_codes
        steps: Any = self.scale_steps
        spread = steps.flatten().repeat_interleave(SCALES)[: len(codes)]
        return codes.float() * spread + self.scale_mean

    @property
    def weight(self) -> Tensor:
        """The weights in the form of the layer it was made of, made whole; for those who ask for their type or place."""
        return self.whole().T if self.turned else self.whole()

    @property
    def num_bytes(self) -> int:
        """Of what stands for the weights."""
        return sum(value.numel() * value.element_size() for value in self.buffers())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        out: Tensor = _Product.apply(x, self, False)  # type: ignore[assignment]
        return out if self.bias is None else out + self.bias.to(out.dtype)


class QuantisedLowRank(nn.Module):
    """A quantised layer and a low-rank change beside it: W x + b + (alpha / rank) B A x; B starts at zero."""

    def __init__(
        self, base_layer: QuantisedLinear, *, rank: int, alpha: float, dropout: float, seeds: tuple[int, ...] = (0,)
    ) -> None:
        super().__init__()
        self.base_layer, self.scale = base_layer, alpha / rank
        with torch.random.fork_rng(devices=[]):
            self.lora_A = nn.Linear(base_layer.in_features, rank, bias=False)
            self.lora_B = nn.Linear(rank, base_layer.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=5**0.5, generator=generator(*seeds))
        nn.init.zeros_(self.lora_B.weight)
        self.dropout = nn.Dropout(dropout)

    @property
    def weight(self) -> Tensor:
        """As of the layer alone."""
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.base_layer(x) + self.scale * self.lora_B(self.lora_A(self.dropout(x)))


# ---- putting them in


@dataclass(frozen=True, kw_only=True)
class QuantisedBase:
    """Which layers were quantised, and which of them have a change beside: enough to do it again, as plain JSON values."""

    layers: tuple[str, ...]
    targets: tuple[str, ...]
    bits: Bits
    double: bool
    rank: int
    alpha: float
    dropout: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The fields and `{"kind": "qlora"}`."""
        return {"kind": "qlora", **asdict(self), "layers": list(self.layers), "targets": list(self.targets)}

    @staticmethod
    def from_json(description: Mapping[str, Any]) -> QuantisedBase:
        """The inverse of `to_json`."""
        d: dict[str, Any] = {name: value for name, value in description.items() if name != "kind"}
        d |= {"layers": tuple(d["layers"]), "targets": tuple(d["targets"])}
        return QuantisedBase(**d)


def insert(model: M, description: QuantisedBase, *, seed: int = 0) -> M:
    """The model with quantised layers and changes beside them; the given one, and its weights, stay as they are.

    Raises:
        ConfigError: the rank is above the smaller side of a layer.
    """
    adapted = same_tensors(model)
    for position, name in enumerate(description.layers):
        layer = adapted.get_submodule(name)
        made: nn.Module = QuantisedLinear(layer, bits=description.bits, double=description.double)
        made.to(next(layer.parameters()).device)
        if name in description.targets:
            limit = min(made.in_features, made.out_features)
            if description.rank > limit:
                raise ConfigError(
                    f"QLoRA.rank: must be at most {limit} (the smaller side of {name}), got {description.rank}"
                )
            made = QuantisedLowRank(
                made,
                rank=description.rank,
                alpha=description.alpha,
                dropout=description.dropout,
                seeds=(seed, position),
            ).to(next(layer.parameters()).device)
        parent, _, child = name.rpartition(".")
        setattr(adapted.get_submodule(parent), child, made)
    return adapted


def quantised_layers(model: nn.Module) -> dict[str, QuantisedLinear]:
    """The quantised layers of a model by the name of the layer each was made of."""
    return {
        name.removesuffix(".base_layer"): module
        for name, module in model.named_modules()
        if isinstance(module, QuantisedLinear)
    }


def changed_layers(model: nn.Module) -> dict[str, QuantisedLowRank]:
    """The layers with a change beside them, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantisedLowRank)}


def describe(model: nn.Module) -> QuantisedBase | None:
    """What was put into a model by `insert`, or None."""
    layers, changed = quantised_layers(model), changed_layers(model)
    if not layers or not changed:
        return None
    first, change = next(iter(layers.values())), next(iter(changed.values()))
    rank = change.lora_A.out_features
    return QuantisedBase(
        layers=tuple(layers),
        targets=tuple(changed),
        bits=first.bits,
        double=first.double_scales,
        rank=rank,
        alpha=change.scale * rank,
        dropout=change.dropout.p,
    )


def change_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the parameters of all changes."""
    return frozenset(f"{name}.lora_{which}.weight" for name in changed_layers(model) for which in "AB")


def added_tensors(model: nn.Module) -> frozenset[str]:
    """Names of all that stands in for the weights: codes, scales and the changes."""
    buffers = {
        f"{name}.{own}"
        for name, module in model.named_modules()
        if isinstance(module, QuantisedLinear)
        for own, _ in module.named_buffers()
    }
    return change_parameters(model) | buffers


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights that the quantised layers stand for, under the names of the plain model."""
    return {f"{name}.weight": layer.weight.contiguous() for name, layer in quantised_layers(model).items()}
