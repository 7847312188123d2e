"""Attention for processors: the plain formula, with a softmax that is as quick on short texts as on long ones.

Two things are slow on CPUs: the backward pass of PyTorch's fused attention in bf16, and its softmax over rows shorter than a
vector register (16 numbers). What this gains by length of text, `benchmarks/attention.py` measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.core.modes import eval_mode
from regraft.layers.byte_dropout import dropped
from regraft.models.trace import call, tensors_in

NAME = "regraft_plain"  # under which transformers knows it
LANES = 16  # fp32 numbers in the widest vector register
TOLERANCE = 1e-5  # of the largest output
HARMLESS = frozenset(  # options that are in the mask already, or ask for outputs
    {
        "cache_position", "is_causal", "output_attentions", "output_hidden_states", "past_key_values", "position_embeddings",
        "position_ids", "return_dict", "sliding_window", "use_cache",
    }
)  # fmt: skip


def plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """softmax(query key^T scaling + mask) value, (N, L, H, D), and the weights (N, H, L, L'). Vaswani et al., 2017, eq. 1.

    The softmax is computed in fp32. Fewer than 16 keys are filled up with keys that have no weight, so that every sum runs over
    whole registers: it is quicker, and a text gets the same bits in a batch padded to any length.

    Args:
        module: whose attention it is.
        query: (N, H, L, D).
        key: (N, G, L', D), H a multiple of G.
        value: as `key`.
        attention_mask: added to the scores, broadcast to (N, H, L, L').
        scaling: default 1 / sqrt(D).
        dropout: share of the weights that is dropped in training.
        options: what else the model hands to its attention.

    Raises:
        TypeError: an option is set that may mean another formula, such as one that squashes the scores.
    """
    meaning = sorted(name for name, value in options.items() if name not in HARMLESS and value is not None)
    if meaning:
        raise TypeError(f"plain attention knows nothing of {', '.join(meaning)}")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    length = key.shape[2]
    if length < LANES:
        more = LANES - length
        key, value = F.pad(key, (0, 0, 0, more)), F.pad(value, (0, 0, 0, more))
        if attention_mask is None:
            attention_mask = query.new_zeros(1, 1, 1, length)
        attention_mask = F.pad(attention_mask.expand(*attention_mask.shape[:-1], length), (0, more), value=-torch.inf)
    scores = torch.matmul(query, key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    if module.training:
        weights = dropped(weights, dropout)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights[..., :length]


def use_plain_attention(module: nn.Module, example: Mapping[str, Tensor]) -> None:
    """Have a transformers model compute `plain_attention`, where that gives its numbers; else the plain formula of its own.

    The two are compared on the example, padded texts included, to 1e-5 of the largest output. A model that does not let its
    attention be chosen is left as it is.
    """
    choose = getattr(module, "set_attn_implementation", None)
    if choose is None:
        return
    _register()
    choose("eager")
    want = _output(module, example)
    choose(NAME)
    got = _output(module, example)
    if got is None or want is None or not (got - want).abs().max() <= TOLERANCE * want.abs().max():
        choose("eager")


def adds_its_mask(module: nn.Module) -> bool:
    """Is a mask added to the scores of this model's attention, as in the plain formula? Others take a mask of booleans."""
    config = getattr(module, "config", None)
    return getattr(config, "_attn_implementation", "eager") in ("eager", NAME)


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, plain_attention)
    AttentionMaskInterface.register(NAME, eager_mask)


@torch.no_grad()
def _output(module: nn.Module, example: Mapping[str, Tensor]) -> Tensor | None:
    """What the model gives for the example in eval mode; None if it cannot be run so."""
    try:
        with eval_mode(module):
            return tensors_in(call(module, example))[0].float()
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError):
        return None
