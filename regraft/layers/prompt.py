"""Trained vectors in front of the word vectors of a text, directly or through an encoder: soft prompts.

Lester et al. 2021, arXiv:2104.08691, section 2 (the vectors themselves); Liu et al. 2021, arXiv:2103.10385, section 3 (through
an encoder). They are cut off again from all that the network hands out, so nothing is pooled over them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.core.seeding import generator, mix
from regraft.errors import ModelError
from regraft.layers.sharing import M, same_tensors

CHILD = "prompt"  # name under which the word embedding holds the prompt: what trains there keeps the whole network above it awake
Encoder = Literal["none", "lstm", "mlp"]


class SoftPrompt(nn.Module):
    """Vectors (P, D) of P virtual tokens.

    Args:
        tokens: P.
        width: D, of a word vector.
        encoder: `none`: the vectors themselves train; `lstm`: they are what two bidirectional LSTM layers and a perceptron make
            of P trained vectors, so that they depend on one another; `mlp`: what a perceptron with two hidden layers makes.
        hidden: width of the encoder.
        seeds: decide the first weights.
    """

    def __init__(
        self, tokens: int, width: int, *, encoder: Encoder = "none", hidden: int = 0, seeds: tuple[int, ...] = (0,)
    ) -> None:
        super().__init__()
        self.kind: Encoder = encoder
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mix(*seeds))
            self.tokens = nn.Parameter(0.5 * torch.randn(tokens, width))
            if encoder == "lstm":
                self.lstm = nn.LSTM(width, hidden, num_layers=2, bidirectional=True, batch_first=True)
                self.mlp = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))
            elif encoder == "mlp":
                self.mlp = nn.Sequential(
                    nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width)
                )

    @property
    def hidden(self) -> int:
        """Width of the encoder; 0 where there is none."""
        if self.kind == "lstm":
            return self.lstm.hidden_size
        return int(self.mlp[0].out_features) if self.kind == "mlp" else 0  # type: ignore[arg-type]

    def forward(self) -> Tensor:
        """The vectors (P, D) that stand before the words."""
        if self.kind == "lstm":
            # a copy: FlopCounterMode fails on a module that takes a view of a parameter ("Expected gradient function to be set")
            states, _ = self.lstm(torch.stack([self.tokens]))
            return self.mlp(states).squeeze(0)
        return self.mlp(self.tokens) if self.kind == "mlp" else self.tokens


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What was put before the words of a network: enough to do it again, as plain JSON values."""

    network: str  # name of the transformers network in the model; "" for the model itself
    tokens: int
    encoder: Encoder = "none"
    hidden: int = 0

    def to_json(self) -> dict[str, Any]:
        """The fields and `{"kind": "prompt"}`."""
        return {"kind": "prompt", **asdict(self)}

    @staticmethod
    def from_json(description: Mapping[str, Any]) -> Prompt:
        """The inverse of `to_json`."""
        return Prompt(**{name: value for name, value in description.items() if name != "kind"})


# ---- on the way through a network


def prepend(
    network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a network is called on, with the prompt before the words: a hook that holds nothing itself."""
    given = dict(kwargs)
    ids: Tensor | None = given.pop("input_ids", None)
    if args or ids is None or given.get("position_ids") is not None:
        raise ModelError(
            "a network with a soft prompt is called on input_ids and attention_mask by name, one text a row; leave `packing` out"
        )
    embedding: Any = word_embedding(network)
    prompt: Tensor = embedding.get_submodule(CHILD)()
    words: Tensor = embedding(ids)
    room = _room(network)
    if room is not None and len(prompt) + words.shape[1] > room:
        raise _too_long(network, len(prompt), words.shape[1], room)
    given["inputs_embeds"] = torch.cat([prompt.to(words.dtype).expand(len(ids), -1, -1), words], dim=1)
    for name, fill in (("attention_mask", 1), ("token_type_ids", 0)):
        if given.get(name) is not None:
            given[name] = F.pad(given[name], (len(prompt), 0), value=fill)
    return args, given


def take_off(network: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    """What a network hands out, without what it says of the prompt: a hook that holds nothing itself."""
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None or getattr(output, "pooler_output", None) is not None:
        raise ModelError(
            f"a soft prompt needs a network that hands out its tokens, but a {type(network).__name__} has its own head, which "
            "would read a virtual one; leave `head: standard` out"
        )
    output["last_hidden_state"] = hidden[:, virtual_tokens(network) :]
    return output


def virtual_tokens(network: nn.Module) -> int:
    """Number of virtual tokens that a network puts before its words; 0 for a plain one."""
    return int(getattr(network, "virtual_tokens", 0))


def words_only(network: nn.Module, seen: Mapping[int, Tensor], length: int) -> dict[int, Tensor]:
    """What layers of a network say (N, L, D) of the words alone: of each, the last `length` places."""
    if not virtual_tokens(network):
        return dict(seen)
    return {depth: values[:, -length:] for depth, values in seen.items()}


def word_embedding(network: nn.Module) -> nn.Embedding:
    """The layer that turns token ids into vectors."""
    return network.get_input_embeddings()  # type: ignore[operator]


def _room(network: nn.Module) -> int | None:
    """Number of positions a network has a vector for; None where they are computed."""
    limit = getattr(network.config, "max_position_embeddings", None)
    tables = [m for m in network.modules() if isinstance(m, nn.Embedding) and m is not word_embedding(network)]
    tables = [table for table in tables if limit in (table.num_embeddings, _positions(table))]
    return _positions(tables[0]) if tables else None


def _positions(table: nn.Embedding) -> int:
    """Vectors of a table that stand for positions: OPT and BART leave the first `offset` out, RoBERTa those up to padding's."""
    padding = table.padding_idx
    return table.num_embeddings - int(getattr(table, "offset", 0 if padding is None else padding + 1))


# ---- putting it in


def find_network(model: nn.Module) -> str:
    """Name of the transformers network of texts in a model; a ModelError where there is none."""
    for name, module in model.named_modules():
        if hasattr(module, "get_input_embeddings") and getattr(module, "main_input_name", "") == "input_ids":
            return name
    raise ModelError(
        f"{type(model).__name__} holds no transformers network of texts, which alone has words to put a prompt before; use LoRA"
    )


def insert(model: M, description: Prompt, *, seed: int = 0) -> M:
    """The model with a soft prompt: new modules around the same tensors; the state dict only grows, by `<words>.prompt.*`.

    Vectors that train themselves start at those of words drawn from the vocabulary (Lester et al., section 3.2).
    """
    adapted = same_tensors(model)
    network: Any = adapted.get_submodule(description.network)
    embedding: Any = word_embedding(network)
    table: Tensor = embedding.weight
    prompt = SoftPrompt(
        description.tokens, table.shape[1], encoder=description.encoder, hidden=description.hidden, seeds=(seed, 0)
    )
    if description.encoder == "none":
        rows = torch.randint(len(table), (description.tokens,), generator=generator(seed, 1))
        prompt.tokens = nn.Parameter(table.detach()[rows.to(table.device)].clone())
    embedding.add_module(CHILD, prompt.to(table.device, table.dtype))
    network.virtual_tokens = description.tokens
    network.register_forward_pre_hook(prepend, with_kwargs=True)
    network.register_forward_hook(take_off, with_kwargs=True)
    return adapted


def describe(model: nn.Module) -> Prompt | None:
    """What was put into a model by `insert`, or None."""
    for name, network in model.named_modules():
        if virtual_tokens(network):
            prompt = word_embedding(network).get_submodule(CHILD)
            assert isinstance(prompt, SoftPrompt)
            return Prompt(network=name, tokens=len(prompt.tokens), encoder=prompt.kind, hidden=prompt.hidden)
    return None


def prompt_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the parameters of the prompt and its encoder."""
    return frozenset(
        f"{name}.{own}"
        for name, module in model.named_modules()
        if isinstance(module, SoftPrompt)
        for own, _ in module.named_parameters()
    )


def require_room(model: nn.Module, description: Prompt, longest: int) -> None:
    """A ModelError where texts of `longest` tokens and the prompt are more than the network has positions for."""
    network = model.get_submodule(description.network)
    room = _room(network)
    if room is not None and description.tokens + longest > room:
        raise _too_long(network, description.tokens, longest, room)


def _too_long(network: nn.Module, tokens: int, longest: int, room: int) -> ModelError:
    return ModelError(
        f"{tokens} virtual tokens and texts of {longest} are more than the {room} positions of the {type(network).__name__}; "
        f"use fewer, or set models.main.max_length to {max(1, room - tokens)} or less"
    )
