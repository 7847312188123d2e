"""What the output of a block becomes before it enters a linear head: pure functions to (N, F), accumulated in fp32.

Tokens are (N, L, D), maps are (N, C, H, W), vectors are (N, F). Names of the poolings: `mean`, `max`, `first` (the CLS token),
`last` (the last real token: the only one of a decoder that has seen the whole text), `grid` (2x2 adaptive average of a map).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from regraft.errors import ModelError, suggest

Kind = Literal["tokens", "causal", "map", "vector"]  # causal: tokens of a decoder, of which the first says nothing
POOLS: dict[Kind, tuple[str, ...]] = {
    "tokens": ("mean", "max", "first"),
    "causal": ("mean", "max", "last"),
    "map": ("mean", "max", "grid"),
    "vector": ("mean",),
}


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens whose mask is 1, (N, L, D) and (N, L) -> (N, D) fp32; zeros where a row has none."""
    weight = mask.to(torch.float32).unsqueeze(-1)
    return (tokens.float() * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def masked_max(tokens: Tensor, mask: Tensor) -> Tensor:
    """Maximum over the tokens whose mask is 1, (N, L, D) and (N, L) -> (N, D) fp32; zeros where a row has none."""
    real = mask.bool().unsqueeze(-1)
    highest = tokens.float().masked_fill(~real, torch.finfo(torch.float32).min).amax(dim=1)
    return torch.where(real.any(dim=1), highest, torch.zeros_like(highest))


def last_token(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """The last token whose mask is not 0, (N, L, D) and (N, L) -> (N, D) fp32; zeros where a row has none."""
    if mask is None:
        return tokens[:, -1].float()
    place = (mask.ne(0) * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(
        dim=1
    )  # from 1; 0 where there is none
    picked = tokens[torch.arange(len(tokens), device=tokens.device), (place - 1).clamp(min=0)].float()
    return torch.where(place.unsqueeze(1) > 0, picked, torch.zeros_like(picked))


def kind_of(output: Tensor, *, causal: bool = False) -> Kind:
    """What the output of a block is, by its number of dimensions; anything but 2, 3 or 4 is a ModelError."""
    kinds: dict[int, Kind] = {2: "vector", 3: "causal" if causal else "tokens", 4: "map"}
    if output.ndim not in kinds:
        raise ModelError(
            f"a block returns a tensor of shape {tuple(output.shape)}, which is neither tokens (N, L, D), "
            "a map (N, C, H, W) nor a vector (N, F); read other depths"
        )
    return kinds[output.ndim]


def width(kind: Kind, channels: int, pool: str) -> int:
    """Number of features that `pool` makes of `channels` channels."""
    require_pool(kind, pool)
    return 4 * channels if pool == "grid" else channels


def require_pool(kind: Kind, pool: str) -> None:
    """A ModelError unless `pool` is defined for what the block returns."""
    if pool not in POOLS[kind]:
        what = "the tokens of a decoder" if kind == "causal" else f"{kind} outputs"
        raise ModelError(f"pools: {what} cannot be pooled by {pool!r}{suggest(pool, POOLS[kind])}")


def pooled(output: Tensor, pool: str, mask: Tensor | None = None) -> Tensor:
    """The output of a block, pooled to (N, F) in fp32; `mask` (N, L) says which tokens are real."""
    kind = kind_of(output, causal=pool == "last")
    require_pool(kind, pool)
    if kind == "vector":
        return output.float()
    if kind == "map":
        return _pooled_map(output.float(), pool)
    if pool == "first":
        return output[:, 0].float()
    if pool == "last":
        return last_token(output, mask)
    if mask is None or mask.shape[:2] != output.shape[:2] or _is_full(mask):
        return output.float().mean(dim=1) if pool == "mean" else output.float().amax(dim=1)
    return masked_mean(output, mask) if pool == "mean" else masked_max(output, mask)


def _is_full(mask: Tensor) -> bool:
    """Is nothing padded? Not asked of another device than the processor: the answer would have to be waited for."""
    return mask.device.type == "cpu" and bool(mask.all())


def _pooled_map(maps: Tensor, pool: str) -> Tensor:
    """A map (N, C, H, W) as (N, C), or (N, 4C) for `grid`: the four quarters of channel 0, then of channel 1, ..."""
    if pool == "mean":
        return maps.mean(dim=(2, 3))
    if pool == "max":
        return maps.amax(dim=(2, 3))
    return F.adaptive_avg_pool2d(maps, 2).flatten(1)
