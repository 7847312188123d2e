"""Low-rank adapters through peft: which layers get one, putting them in, merging them, and the folder plain peft can load.

A layer W (out, in) becomes W + (alpha / rank) B A with A (rank, in) and B (out, rank). Hu et al. 2021, arXiv:2106.09685, eq. 3.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regraft.core.seeding import generator
from regraft.errors import ConfigError, suggest
from regraft.layers.sharing import M, same_tensors
from regraft.models.blocks import blocks
from regraft.models.parts import parts_of

ADAPTER = "default"  # peft's name for the only adapter of a model


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """What was put into a model: enough to do it again, as plain JSON values."""

    targets: tuple[str, ...]  # full names of the layers
    rank: int
    alpha: float
    dropout: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The fields and `{"kind": "lora"}`."""
        return {"kind": "lora", **asdict(self), "targets": list(self.targets)}

    @staticmethod
    def from_json(description: Mapping[str, Any]) -> LowRank:
        """The inverse of `to_json`."""
        d = dict(description)
        return LowRank(targets=tuple(d["targets"]), rank=d["rank"], alpha=d["alpha"], dropout=d["dropout"])


# ---- which layers


def find_targets(model: nn.Module, patterns: str | Iterable[str] = "auto") -> tuple[str, ...]:
    """Names of the layers to adapt, in order of registration.

    "auto": every linear layer inside the blocks; where there is none, every 1x1 convolution in them, and where there is none
    of those, every ungrouped convolution. Patterns are matched against whole names and their ends, as a shell does.

    Raises:
        ConfigError: a pattern names no layer, or there is none to adapt.
    """
    linear, pointwise, dense = _kinds(model)
    if patterns == "auto":
        inside = _inside_blocks(model)
        for names in (linear, pointwise, dense):
            found = tuple(name for name in names if name in inside)
            if found:
                return found
        raise ConfigError(
            f"LoRA.targets: the blocks of the {type(model).__name__} hold no linear layer or convolution; name layers by pattern"
        )
    known = [name for name, _ in model.named_modules() if name in {*linear, *dense}]
    chosen: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        hits = {name for name in known if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")}
        if not hits:
            ends = {name.rpartition(".")[2] for name in known}
            raise ConfigError(
                f"LoRA.targets: no linear layer or convolution matches {pattern!r}{suggest(pattern, ends)}"
            )
        chosen |= hits
    return tuple(name for name in known if name in chosen)


def _kinds(model: nn.Module) -> tuple[list[str], list[str], list[str]]:
    """Names of linear layers, of 1x1 convolutions, and of all ungrouped convolutions."""
    linear, pointwise, dense = list[str](), list[str](), list[str]()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            linear.append(name)
        elif isinstance(module, nn.Conv2d) and module.groups == 1:
            dense.append(name)
            if module.kernel_size == (1, 1):
                pointwise.append(name)
    return linear, pointwise, dense


def _inside_blocks(model: nn.Module) -> set[str]:
    """Names of all modules in the blocks, the blocks themselves included; the head is not among them."""
    head = {name.rpartition(".")[0] for name in parts_of(model).head}
    names: set[str] = set()
    for block in blocks(model):
        names |= {f"{block.name}.{name}" if name else block.name for name, _ in block.module.named_modules()}
    return names - head


def smaller_side(layer: nn.Module) -> int:
    """The largest rank a layer's weight can have, min(out, in x kernel)."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return min(weight.shape[0], weight[0].numel())


# ---- putting them in, and merging


def inject(model: M, description: LowRank, *, seed: int = 0) -> M:
    """The model with low-rank adapters: new modules around the same tensors; the first output is that of the model, bit for bit.

    A is drawn from `seed` and the layer's position (Kaiming uniform, as in peft), B is zero. Names of adapted weights become
    `<layer>.base_layer.weight`; `requires_grad` of the model's own parameters stays as it was.

    Raises:
        ConfigError: the rank is above the smaller side of a layer.
    """
    import peft

    for name in description.targets:
        limit = smaller_side(model.get_submodule(name))
        if description.rank > limit:
            raise ConfigError(
                f"LoRA.rank: must be at most {limit} (the smaller side of {name}), got {description.rank}"
            )
    adapted = same_tensors(model)
    required = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
    with torch.random.fork_rng(devices=[]):
        peft.inject_adapter_in_model(_config(description), adapted, ADAPTER)
    for position, layer in enumerate(low_rank_layers(adapted).values()):
        nn.init.kaiming_uniform_(layer.lora_A[ADAPTER].weight, a=5**0.5, generator=generator(seed, position))
        if isinstance(layer.get_base_layer(), nn.Conv2d):  # MobileNet computes its padding from these
            base = layer.get_base_layer()
            layer.stride, layer.kernel_size, layer.dilation = base.stride, base.kernel_size, base.dilation
    for parameter in adapted.parameters():
        parameter.requires_grad_(required.get(id(parameter), True))
    return adapted


def _config(description: LowRank, **more: Any) -> Any:
    """Peft's description of the same thing; targets are one expression, since peft takes names as endings."""
    import peft

    pattern = "|".join(re.escape(name) for name in description.targets)
    return peft.LoraConfig(
        r=description.rank,
        lora_alpha=description.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=description.dropout,
        target_modules=f"({pattern})",
        **more,
    )


def low_rank_layers(model: nn.Module) -> dict[str, Any]:
    """The adapted layers of a model by name; empty where there are none."""
    if "peft" not in sys.modules:
        return {}  # nobody can have made one, and importing peft takes a tenth of a second
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def low_rank_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the parameters A and B of all adapted layers."""
    layers = low_rank_layers(model)
    return frozenset(
        f"{name}.{own}"
        for name, layer in layers.items()
        for own, _ in layer.named_parameters()
        if own.startswith("lora_")
    )


def merge(model: M) -> M:
    """The model with every adapter added to the weight it adapts: a plain model again, under the original names.

    The given model is left as it is, its weights included.
    """
    layers = low_rank_layers(model)
    adapted_weights = {id(p) for layer in layers.values() for p in layer.get_base_layer().parameters()}
    plain = same_tensors(model)
    for name, layer in low_rank_layers(plain).items():
        base = layer.get_base_layer()
        for own, parameter in base.named_parameters(recurse=False):
            assert id(parameter) in adapted_weights
            base.register_parameter(
                own, nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
            )
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(plain.get_submodule(parent), child, base)
    return plain


# ---- files


def describe(model: nn.Module) -> LowRank | None:
    """What was put into a model by `inject`, or None."""
    layers = low_rank_layers(model)
    if not layers:
        return None
    first = next(iter(layers.values()))
    dropout = first.lora_dropout[ADAPTER]
    return LowRank(
        targets=tuple(layers),
        rank=first.r[ADAPTER],
        alpha=first.lora_alpha[ADAPTER],
        dropout=dropout.p if isinstance(dropout, nn.Dropout) else 0.0,
    )


def save_adapter(model: nn.Module, folder: Path, *, base: str, also: Iterable[str] = ()) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, which `peft.PeftModel.from_pretrained` loads.

    Args:
        model: the network as plain peft will be given it, with adapters inside; for a graft, its backbone.
        folder: made if it is not there.
        base: folder or id of the network without adapters, written down for the reader.
        also: children saved whole beside the adapters, such as the `classifier` of a transformers model.
    """
    from safetensors.torch import save_file

    description = describe(model)
    if description is None:
        raise ConfigError(f"the {type(model).__name__} holds no LoRA adapter to save; save the model itself")
    modules = list(also)
    kept = low_rank_parameters(model)
    state = model.state_dict()
    tensors = {_saved_name(name): state[name] for name in state if name in kept or name.startswith(_prefixes(modules))}
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(description, modules_to_save=modules or None, base_model_name_or_path=base, inference_mode=True)
    config.save_pretrained(str(folder))
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors"
    )


def _prefixes(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in names)


def _saved_name(name: str) -> str:
    """A parameter's name in the file: peft puts `base_model.model.` in front and leaves the adapter's name out."""
    return "base_model.model." + re.sub(rf"(lora_[AB])\.{ADAPTER}\.", r"\1.", name)
