"""What was put into a network's modules, as JSON, and how it is put in again when the network is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from regraft.errors import ModelError, suggest


@dataclass(frozen=True, kw_only=True)
class Surgery:
    """One kind of change to a module tree.

    Attributes:
        describe: the description of what a module holds of this kind, with its `kind`, or None.
        rebuild: a plain module and a description -> the module with fresh insertions.
        added: names of the parameters that were put in.
    """

    describe: Callable[[nn.Module], dict[str, Any] | None]
    rebuild: Callable[[nn.Module, Mapping[str, Any]], nn.Module]
    added: Callable[[nn.Module], frozenset[str]]


_KINDS: dict[str, Surgery] = {}


def register_surgery(kind: str, surgery: Surgery) -> None:
    """Make a kind of change known to saving and loading; the last one registered under a name holds."""
    _KINDS[kind] = surgery


def kinds() -> dict[str, Surgery]:
    """All known kinds: `lora`, `adapter`, `extra`, and what was registered."""
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
    return {
        name.replace(".base_layer.", "."): value for name, value in module.state_dict().items() if name not in added
    }


def added_state(module: nn.Module) -> dict[str, Tensor]:
    """The part of the state dict that was put in."""
    added = added_names(module)
    return {name: value for name, value in module.state_dict().items() if name in added}


def _own() -> dict[str, Surgery]:
    """The kinds regraft has itself; imported late, since peft is."""
    from regraft.layers import bottleneck, extra, low_rank

    def lora(module: nn.Module) -> dict[str, Any] | None:
        description = low_rank.describe(module)
        return None if description is None else description.to_json()

    def adapter(module: nn.Module) -> dict[str, Any] | None:
        places = {
            name.rpartition(".")[0]: (part.down.weight.shape[1], isinstance(part.down, nn.Conv2d))
            for name, part in module.named_modules()
            if isinstance(part, bottleneck.Bottleneck)
        }
        widths = {p.down.weight.shape[0] for p in module.modules() if isinstance(p, bottleneck.Bottleneck)}
        return bottleneck.Bottlenecks(width=widths.pop(), places=places).to_json() if places else None

    def extra_layers(module: nn.Module) -> dict[str, Any] | None:
        description = extra.describe(module)
        return None if description is None else description.to_json()

    return {
        "extra": Surgery(
            describe=extra_layers,
            rebuild=lambda module, given: extra.extend(module, extra.ExtraLayers.from_json(given)),
            added=extra.extra_parameters,
        ),
        "lora": Surgery(
            describe=lora,
            rebuild=lambda module, given: low_rank.inject(module, low_rank.LowRank.from_json(given)),
            added=low_rank.low_rank_parameters,
        ),
        "adapter": Surgery(
            describe=adapter,
            rebuild=lambda module, given: bottleneck.insert(module, bottleneck.Bottlenecks.from_json(given)),
            added=bottleneck.adapter_parameters,
        ),
    }
