"""What was put into a network's modules, as JSON, and how it is put in again when the network is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from regraft.errors import ModelError, suggest


def _nothing(module: nn.Module) -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Surgery:
    """One kind of change to a module tree.

    Attributes:
        describe: the description of what a module holds of this kind, with its `kind`, or None.
        rebuild: a plain module and a description -> the module with fresh insertions.
        added: names of the parameters and buffers that were put in.
        restored: what stands for tensors that were taken out, under their names in the plain module.
    """

    describe: Callable[[nn.Module], dict[str, Any] | None]
    rebuild: Callable[[nn.Module, Mapping[str, Any]], nn.Module]
    added: Callable[[nn.Module], frozenset[str]]
    restored: Callable[[nn.Module], dict[str, Tensor]] = _nothing


_KINDS: dict[str, Surgery] = {}


def register_surgery(kind: str, surgery: Surgery) -> None:
    """Make a kind of change known to saving and loading; the last one registered under a name holds."""
    _KINDS[kind] = surgery


def kinds() -> dict[str, Surgery]:
    """All known kinds: `lora`, `adapter`, `prefix`, `prompt`, `extra`, and what was registered."""
    return {**_own(), **_KINDS}


def descriptions(module: nn.Module) -> list[dict[str, Any]]:
    """What was put into a module, one JSON description for each kind; empty for a plain module."""
    found = (surgery.describe(module) for surgery in kinds().values())
    return [description for description in found if description is not None]


def operated(module: nn.Module, described: list[dict[str, Any]]) -> nn.Module:
    """A plain module with everything described put in, with fresh weights."""
    for description in described:
        known = kinds()
        if description["kind"] not in known:
            raise ModelError(f"no surgery is called {description['kind']!r}{suggest(description['kind'], known)}")
        module = known[description["kind"]].rebuild(module, description)
    return module


def added_names(module: nn.Module) -> frozenset[str]:
    """Names of all parameters that were put in."""
    return frozenset(name for surgery in kinds().values() for name in surgery.added(module))


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict without what was put in, under the names of the plain module."""
    added = added_names(module)
    restored = {name: value for surgery in kinds().values() for name, value in surgery.restored(module).items()}
    return restored | {
        name.replace(".base_layer.", "."): value for name, value in module.state_dict().items() if name not in added
    }


def added_state(module: nn.Module) -> dict[str, Tensor]:
    """The part of the state dict that was put in."""
    added = added_names(module)
    return {name: value for name, value in module.state_dict().items() if name in added}


def _own() -> dict[str, Surgery]:
    """The kinds regraft has itself; imported late, since peft is."""
    from regraft.layers import bottleneck, extra, group_norm, low_rank, prefix, prompt, quantised

    return {
        "extra": _surgery(extra.describe, extra.ExtraLayers, extra.extend, extra.extra_parameters),
        "group_norm": _surgery(
            group_norm.describe, group_norm.Grouping, group_norm.to_group_norm, group_norm.added_parameters
        ),
        "lora": _surgery(low_rank.describe, low_rank.LowRank, low_rank.inject, low_rank.low_rank_parameters),
        "adapter": _surgery(
            bottleneck.describe, bottleneck.Bottlenecks, bottleneck.insert, bottleneck.adapter_parameters
        ),
        "prefix": _surgery(prefix.describe, prefix.Prefixes, prefix.insert, prefix.prefix_parameters),
        "prompt": _surgery(prompt.describe, prompt.Prompt, prompt.insert, prompt.prompt_parameters),
        "qlora": _surgery(
            quantised.describe,
            quantised.QuantisedBase,
            quantised.insert,
            quantised.added_tensors,
            restored=quantised.whole_weights,
        ),
    }


def _surgery(
    describe: Callable[[nn.Module], Any],
    description: Any,
    put_in: Callable[[nn.Module, Any], nn.Module],
    added: Callable[[nn.Module], frozenset[str]],
    *,
    restored: Callable[[nn.Module], dict[str, Tensor]] = _nothing,
) -> Surgery:
    """One kind whose description is a value with `to_json` and `from_json`."""

    def as_json(module: nn.Module) -> dict[str, Any] | None:
        found = describe(module)
        return None if found is None else found.to_json()

    return Surgery(
        describe=as_json,
        rebuild=lambda module, given: put_in(module, description.from_json(given)),
        added=added,
        restored=restored,
    )
