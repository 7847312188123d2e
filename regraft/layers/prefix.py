"""Trained keys and values in front of those of an attention layer: what every token can attend to besides the other tokens.

Li and Liang 2021, arXiv:2101.00190, eq. 3 and section 4.3. They reach attention through the interface of transformers, so any
network that lets its attention be chosen takes them, encoder or decoder, of text or of images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.core.modes import eval_mode
from regraft.core.seeding import mix
from regraft.errors import ModelError
from regraft.layers.sharing import M, same_tensors
from regraft.models.attention import plain_attention

CHILD = "prefix"  # name under which an attention layer holds its prefix
NAME = "regraft_prefix"  # under which transformers knows this attention


class Prefix(nn.Module):
    """Keys and values (G, P, D) of P virtual tokens for one attention layer.

    Args:
        heads: G, of the keys.
        width: D, of each head.
        tokens: P.
        hidden: 0 to train keys and values themselves; else the width of a perceptron that makes them from P trained vectors,
            v = W2 tanh(W1 e + b1) + b2 (Li and Liang, section 4.3; each layer has one of its own, theirs is shared).
        seeds: decide the first weights.
    """

    def __init__(self, heads: int, width: int, tokens: int, *, hidden: int = 0, seeds: tuple[int, ...] = (0,)) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mix(*seeds))
            if hidden:
                self.start = nn.Parameter(torch.randn(tokens, heads * width))
                self.inner, self.outer = nn.Linear(heads * width, hidden), nn.Linear(hidden, 2 * heads * width)
            else:
                self.key = nn.Parameter(0.02 * torch.randn(heads, tokens, width))
                self.value = nn.Parameter(0.02 * torch.randn(heads, tokens, width))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copied or unpickled, perhaps in another process, which must know this attention too."""
        super().__setstate__(state)
        register()

    @property
    def tokens(self) -> int:
        """P."""
        return self.start.shape[0] if self.hidden else self.key.shape[1]

    @property
    def hidden(self) -> int:
        """Width of the perceptron; 0 where there is none."""
        return self.inner.out_features if "inner" in self._modules else 0

    def forward(self) -> tuple[Tensor, Tensor]:
        """Keys and values, (G, P, D) each."""
        if not self.hidden:
            return self.key, self.value
        both = self.outer(torch.tanh(self.inner(self.start))).unflatten(1, (2, self.heads, self.width))
        key, value = both.permute(1, 2, 0, 3)
        return key, value


@dataclass(frozen=True, slots=True)
class Seen:
    """What an attention layer was called on: keys and values (N, G, L, D), and the mask that is added to its scores."""

    key: Tensor
    value: Tensor
    mask: Tensor | None


_watching: ContextVar[dict[nn.Module, Seen] | None] = ContextVar("watching", default=None)


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """`plain_attention` over the prefix of `module` and its tokens, softmax(q [P_k; k]^T) [P_v; v], seen by every token."""
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        zero = torch.zeros((), dtype=query.dtype, device=query.device)
        attention_mask = torch.where(attention_mask, zero, torch.finfo(query.dtype).min)
    watched = _watching.get()
    if watched is not None:
        watched[module] = Seen(key, value, attention_mask)
    prefix = module._modules.get(CHILD)
    if prefix is not None:
        own_key, own_value = (part.to(key.dtype).expand(len(key), -1, -1, -1) for part in prefix())
        key, value = torch.cat([own_key, key], dim=2), torch.cat([own_value, value], dim=2)
        if attention_mask is not None:
            attention_mask = F.pad(attention_mask, (own_key.shape[2], 0))
    return plain_attention(module, query, key, value, attention_mask, scaling, dropout, **options)


def register() -> None:
    """Make this attention known to transformers; to do it again changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, prefix_attention)
    AttentionMaskInterface.register(NAME, eager_mask)


@dataclass(frozen=True, kw_only=True)
class Prefixes:
    """Which attention layers got a prefix: enough to do it again, as plain JSON values."""

    tokens: int
    hidden: int
    places: Mapping[str, tuple[int, int]]  # name of the attention layer -> heads of its keys, width of each

    def to_json(self) -> dict[str, Any]:
        """`{"kind": "prefix", "tokens": ..., "hidden": ..., "places": [[name, heads, width], ...]}`."""
        places = [[name, *place] for name, place in self.places.items()]
        return {"kind": "prefix", "tokens": self.tokens, "hidden": self.hidden, "places": places}

    @staticmethod
    def from_json(description: Mapping[str, Any]) -> Prefixes:
        """The inverse of `to_json`."""
        places = {name: (heads, width) for name, heads, width in description["places"]}
        return Prefixes(tokens=description["tokens"], hidden=description["hidden"], places=places)


def choosable(model: M) -> M:
    """The model on the same tensors, its attention computed here; a ModelError where that cannot be chosen."""
    register()
    chosen = same_tensors(model)
    networks = [module for module in chosen.modules() if hasattr(module, "set_attn_implementation")]
    if not networks:
        raise ModelError(
            f"{type(model).__name__} holds no transformers network, which alone lets its attention take a prefix; use LoRA"
        )
    networks[0].set_attn_implementation(NAME)  # type: ignore[operator]
    return chosen


@torch.no_grad()
def watch_attention(model: nn.Module, run: Callable[[nn.Module], object]) -> dict[str, Seen]:
    """Name of each attention layer that computes `prefix_attention` -> what it was called on in one run, in eval mode."""
    watched: dict[nn.Module, Seen] = {}
    token = _watching.set(watched)
    try:
        with eval_mode(model):
            run(model)
    finally:
        _watching.reset(token)
    names = {module: name for name, module in model.named_modules()}
    return {names[module]: seen for module, seen in watched.items()}


def insert(model: M, description: Prefixes, *, seed: int = 0) -> M:
    """The model with prefixes: new modules around the same tensors; the state dict only grows, by `<attention>.prefix.*`."""
    adapted = choosable(model)
    for position, (name, (heads, width)) in enumerate(description.places.items()):
        attention = adapted.get_submodule(name)
        like = next(attention.parameters())
        prefix = Prefix(heads, width, description.tokens, hidden=description.hidden, seeds=(seed, position))
        attention.add_module(CHILD, prefix.to(like.device, like.dtype))
    return adapted


@torch.no_grad()
def start_from(model: nn.Module, seen: Mapping[str, Seen]) -> None:
    """Set keys and values to those of real tokens: the first P that each layer was called on, over and over if they are fewer.

    Li and Liang, section 7.4: starting from activations of real words is better than starting at random.
    """
    for name, layer in seen.items():
        prefix = model.get_submodule(f"{name}.{CHILD}")
        assert isinstance(prefix, Prefix)
        real = torch.ones(layer.key.shape[0], layer.key.shape[2], dtype=torch.bool)
        if layer.mask is not None:  # what the last token sees; of a decoder that is all there is
            real = layer.mask[:, 0, -1, :].eq(0).expand_as(real)
        for own, given in ((prefix.key, layer.key), (prefix.value, layer.value)):
            tokens = given.transpose(1, 2)[real]  # (T, G, D)
            picked = tokens[torch.arange(prefix.tokens, device=tokens.device) % len(tokens)]
            own.copy_(picked.transpose(0, 1))


def describe(model: nn.Module) -> Prefixes | None:
    """What was put into a model by `insert`, or None."""
    found = {name.rpartition(".")[0]: module for name, module in model.named_modules() if isinstance(module, Prefix)}
    if not found:
        return None
    first = next(iter(found.values()))
    places = {name: (prefix.heads, prefix.width) for name, prefix in found.items()}
    return Prefixes(tokens=first.tokens, hidden=first.hidden, places=places)


def prefix_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the parameters of all prefixes."""
    return frozenset(
        f"{name}.{own}"
        for name, module in model.named_modules()
        if isinstance(module, Prefix)
        for own, _ in module.named_parameters()
    )
