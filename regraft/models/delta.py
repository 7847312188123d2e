"""A fine-tuned model as what it differs in from its pretrained base: the folder holds that, and the hash of the base it is for.

    base, cut as the model is  ->  with what was put in  ->  with the tensors of changed.safetensors

The base's tensors are shared, never written to, so any number of models stand on one base in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regraft.errors import ModelError
from regraft.layers.sharing import same_tensors
from regraft.models.backbone import Cutting, Modality
from regraft.models.headers import load_tensors
from regraft.models.load import config_of, find_model, load_backbone, quiet
from regraft.models.safety import checked_config
from regraft.models.surgery import added_names, operated

CHANGED = "changed.safetensors"


def weights_hash(model: nn.Module) -> str:
    """sha256 over names and bytes of all parameters and buffers, in order."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(_bits(value).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Base:
    """A pretrained network that deltas stand on: a value; its tensors are shared by all of them."""

    name: str
    folder: Path  # of the weights, and of the tokenizer
    module: nn.Module
    sha256: str

    @property
    def num_bytes(self) -> int:
        """Of all its tensors."""
        return bytes_of(self.module.state_dict())


def load_base(name: str, *, modality: Modality) -> Base:
    """The base of a hub id, a local folder or an alias, with the hash of its weights; in eval mode.

    Raises:
        ModelError: it is not there, or not a network for this modality.
    """
    module = load_backbone(name, modality=modality).module
    return Base(name=name, folder=find_model(name), module=module, sha256=weights_hash(module))


def base_of(folder: Path, info: Mapping[str, Any], given: Base | str | None = None) -> Base:
    """The base a delta was made for: the one that is given, by name or loaded, or else the one it names.

    Raises:
        ModelError: it is not there, or its weights are others.
    """
    wanted = info["delta"]
    base = given if isinstance(given, Base) else load_base(given or wanted["base"], modality=info["modality"])
    if base.sha256 != wanted["sha256"]:
        raise ModelError(
            f"{folder} was made for weights of {wanted['base']} whose sha256 starts with {wanted['sha256'][:12]}, but those of "
            f"{base.name} have {base.sha256[:12]}; give the base it was made for"
        )
    return base


def delta_network(folder: Path, info: Mapping[str, Any], base: Base) -> nn.Module:
    """The network of a delta on its base, in eval mode.

    Raises:
        ModelError: the delta does not fit.
    """
    network = started(folder, info, base)
    tensors = load_tensors(folder / CHANGED)
    known = network.state_dict()
    for name, value in tensors.items():
        if name not in known or known[name].shape != value.shape:
            raise ModelError(
                f"{folder}/{CHANGED} holds {name!r}, which the model has not in this shape; copy the whole folder"
            )
    put(network, tensors)
    return network.eval()


def started(folder: Path, info: Mapping[str, Any], base: Base) -> nn.Module:
    """A network as a model's training found it: the base, cut and with a head as the model has it, and what was put in, fresh.

    Args:
        folder: of the model; holds config.json where the network is transformers' own with a head.
        info: what its model.json says.
        base: shared, and left as it is.
    """
    if info["kind"] == "graft":
        cutting = Cutting(dropped=tuple(info["cut"]["dropped"]), skipped=tuple(info["cut"]["skipped"]))
        return operated(same_tensors(cutting.applied(base.module)), info["surgery"])
    checked_config(folder)
    with quiet(), torch.random.fork_rng(devices=[]):
        whole: Any = headed_class(info).from_config(config_of(folder), dtype=torch.float32, trust_remote_code=False)
    names = whole.state_dict().keys()
    under = {f"{whole.base_model_prefix}.{name}": value for name, value in base.module.state_dict().items()}
    put(whole, {name: value for name, value in under.items() if name in names})
    return operated(whole, info["surgery"])


def headed_class(info: Mapping[str, Any]) -> Any:
    """The class of transformers that makes a model with its own head, by what model.json says it is for."""
    import transformers

    if info["task"] == "language-model":
        return transformers.AutoModelForCausalLM
    kind = "Sequence" if info["modality"] == "text" else "Image"
    return getattr(transformers, f"AutoModelFor{kind}Classification")


def changes(network: nn.Module, start: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network that were put in, that its start has not, or that differ from it in any bit; by name.

    A parameter that has several names, as tied embeddings have, stands under its first one.
    """
    names = dict(network.named_parameters()).keys()
    again = dict(network.named_parameters(remove_duplicate=False)).keys() - names
    before, added = start.state_dict(), added_names(network) & names
    return {
        name: value
        for name, value in network.state_dict().items()
        if name not in again and (name in added or name not in before or not same_bits(value, before[name]))
    }


def put(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Have a network hold these tensors themselves in place of its own, which are left as they are; what is tied stays so."""
    places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for owner in network.modules():
        for own, parameter in owner._parameters.items():
            if parameter is not None:
                places.setdefault(parameter, []).append((owner, own))
    for name, value in tensors.items():
        owner_name, _, own = name.rpartition(".")
        owner = network.get_submodule(owner_name)
        old = owner._parameters.get(own)
        if old is not None:
            new = nn.Parameter(value.detach(), requires_grad=value.is_floating_point())
            places[new] = places.pop(old)
            for holder, key in places[new]:
                holder._parameters[key] = new
        else:
            owner._buffers[own] = value.detach()


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of tensors, shared ones once."""
    seen = {value.data_ptr(): value.numel() * value.element_size() for value in tensors.values()}
    return sum(seen.values())


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Are two tensors of one type and shape equal in every bit, the sign of a zero included?"""
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(_bits(one), _bits(other))


def _bits(value: Tensor) -> Tensor:
    """The bytes of a tensor, on the processor."""
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8)
