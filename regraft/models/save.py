"""A model as a folder: safetensors and JSON only, written whole or not at all, and read back to the same numbers.

standard head    what transformers writes: AutoModelFor...Classification.from_pretrained(folder)
graft            a plain transformers backbone, head.safetensors and a README with the code that joins them
LoRA             the plain model in backbone/, and beside it what peft.PeftModel.from_pretrained(model, folder) takes
plain network    model.safetensors and network.json; a module of one's own: model.safetensors alone
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from regraft.core.forward import inputs_of
from regraft.core.modes import eval_mode
from regraft.errors import ModelError
from regraft.layers.reparametrise import folded
from regraft.models.backbone import Backbone, Boundary, Cutting, plain_backbone
from regraft.models.delta import Base, base_of, delta_network, headed_class
from regraft.models.graft import Graft, captured, count_parameters, put_linear
from regraft.models.headers import load_tensors
from regraft.models.heads import head_name
from regraft.models.load import config_of, example_inputs, from_folder, quiet
from regraft.models.networks import rebuilt
from regraft.models.plain import bare, copy_beside, save_backbone, takes_pooler_option
from regraft.models.readme import graft_code, page
from regraft.models.safety import checked_beside, checked_config, checked_weights, read_json
from regraft.models.standard import StandardHead
from regraft.models.surgery import added_names, added_state, descriptions, operated, plain_state
from regraft.models.trace import call

FORMAT = 1


def save_model(
    model: nn.Module,
    folder: Path,
    *,
    preprocessor_json: Mapping[str, Any],
    labels: Sequence[str],
    task: str,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """The folder, written to a sibling first and then renamed; one that was there is replaced.

    Args:
        model: a `Graft`, a `StandardHead`, a plain network or any module.
        folder: to be written.
        preprocessor_json: how raw values become its inputs, as JSON.
        labels: class names in the order of the outputs; empty for regression.
        task: binary, multiclass, multilabel or regression.
        extra: more for model.json, as JSON.
    """
    folder, model = Path(folder), folded(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = folder.parent / f".{folder.name}.making-{os.getpid()}"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    try:
        with eval_mode(model):
            info = _about(model, labels=list(labels), task=task, extra=dict(extra or {}))
            _write(model, making, info)
        _write_json(making / "labels.json", list(labels))
        _write_json(making / "preprocessing.json", dict(preprocessor_json))
        _exchange(making, folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


def load_model(
    folder: Path, *, module: nn.Module | None = None, base: Base | str | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a folder in eval mode, and what its model.json says, with `labels` and `preprocessing`.

    Args:
        folder: written by `save_model`, or a delta.
        module: an instance of the class, where the folder holds weights of a module of one's own.
        base: of a delta, by name or loaded; default the one it names.
    """
    folder = Path(folder)
    info = read_json(folder / "model.json")
    if info.get("format") != FORMAT:
        raise ModelError(
            f"{folder}/model.json has format {info.get('format')!r}, but this regraft reads {FORMAT}; upgrade regraft"
        )
    try:
        return _loaded(folder, info, module, base), info
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ModelError(
            f"{folder} is not as regraft writes a model ({reason}); copy the whole folder again"
        ) from error


def _loaded(folder: Path, info: dict[str, Any], module: nn.Module | None, under: Base | str | None) -> nn.Module:
    """The model that a model.json describes, in eval mode; how its inputs are prepared is added to `info`."""
    if "delta" in info:
        network = delta_network(folder, info, base_of(folder, info, under))
    else:
        network = _with_added(folder, info, _loaded_base(folder, info, module))
    if info["kind"] == "graft":
        model: nn.Module = _loaded_graft(folder, info, network)
    elif info["kind"] == "standard":
        model = StandardHead(network, inputs=info["inputs"], name=info["name"], modality=info["modality"])
        model.licence, model.source = info["licence"], str(folder)
    else:
        model = network
    info["preprocessing"] = read_json(folder / "preprocessing.json")
    return model.eval()


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Name, type, parameters (all and trainable), blocks, bytes and licence of a model, as JSON."""
    from regraft.models.blocks import blocks

    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}.values()
    return {
        "name": str(getattr(model, "name", type(model).__name__)),
        "type": str(getattr(model, "model_type", type(model).__name__)),
        "parameters": count_parameters(model),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "blocks": len(blocks(model)),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        "licence": getattr(model, "licence", None),
    }


# Writing


def _about(model: nn.Module, *, labels: list[str], task: str, extra: dict[str, Any]) -> dict[str, Any]:
    """What model.json says about any model."""
    network = _network(model)
    about = {"format": FORMAT, "kind": _kind(model), "inputs": list(inputs_of(model)), "task": task, "labels": labels}
    about |= {"name": str(getattr(model, "name", type(model).__name__)), "licence": getattr(model, "licence", None)}
    about |= {"modality": getattr(model, "modality", None), "surgery": descriptions(network), "extra": extra}
    spec = getattr(network, "spec", None)
    about["base"] = "transformers" if hasattr(network, "config") else "network" if isinstance(spec, dict) else "module"
    if isinstance(model, Graft):
        places = list(model.boundaries)
        read = [model.boundary(depth) for depth in model.depths]
        about |= {"reads": [list(r) for r in model.reads], "depths": list(model.depths), "pools": list(model.pools)}
        about |= {"modules": {str(p.depth): p.name for p in read}, "kinds": {str(p.depth): p.kind for p in read}}
        about |= {"boundaries": [asdict(place) for place in places], "cut": asdict(model.cut)}
        about["num_outputs"] = model.head.out_features
        about["example_shape"] = list(next(iter(model.example.values())).shape)
    return about


def _kind(model: nn.Module) -> str:
    """graft, standard, or module."""
    return "graft" if isinstance(model, Graft) else "standard" if isinstance(model, StandardHead) else "module"


def _network(model: nn.Module) -> nn.Module:
    """The network inside a graft or a standard head, else the model."""
    return model.backbone if isinstance(model, Graft) else model.whole if isinstance(model, StandardHead) else model


def _write(model: nn.Module, folder: Path, info: dict[str, Any]) -> None:
    """Weights, model.json and README of a model."""
    network = _network(model)
    lora = any(description["kind"] == "lora" for description in info["surgery"])
    base = folder / "backbone" if lora and info["base"] == "transformers" else folder
    base.mkdir(exist_ok=True)
    code = ""
    if isinstance(model, Graft) and info["base"] == "transformers":
        info["loads_plainly"] = _write_graft_base(model, base)
        size = [] if info["modality"] == "text" else info["example_shape"][1:]
        pooler = takes_pooler_option(network.config)
        if all(
            description["kind"] == "lora" for description in info["surgery"]
        ):  # what plain PyTorch and peft can rebuild
            padded = bool(getattr(network.config, "tf_padding", False))
            plain = info["loads_plainly"]
            code = graft_code(info, loads_plainly=plain, pooler_option=pooler, lora=lora, padded=padded, size=size)
    elif isinstance(model, StandardHead):
        _write_standard_base(model, base)
    else:
        _save_tensors(plain_state(network), base / "model.safetensors")
        if info["base"] == "network":
            _write_json(folder / "network.json", network.spec)  # type: ignore[arg-type]
    _write_added(model, network, folder, info, lora=lora)
    if isinstance(model, Graft):
        _save_tensors({"weight": model.head.weight, "bias": model.head.bias}, folder / "head.safetensors")
    copy_beside(getattr(model, "source", None), folder)
    _write_json(folder / "model.json", info)
    (folder / "README.md").write_text(page(info, code, _note(model, info, lora=lora)), encoding="utf-8")


def _write_graft_base(model: Graft, folder: Path) -> bool:
    """The plain backbone of a graft; can plain transformers load it as it is?"""
    places = [model.boundary(depth) for depth in model.depths]
    plain = _stripped(model) if added_names(model.backbone) else model.backbone
    with torch.no_grad(), captured(plain, places) as seen:
        call(plain, model.example)
    state = {name: value for name, value in plain_state(model.backbone).items() if not name.startswith("pooler.")}
    return save_backbone(plain, state, folder, places=places, outputs=seen, example=model.example)


def _stripped(model: Graft) -> nn.Module:
    """The backbone of a graft without what was put in, as a network of its own."""
    plain = model.cut.applied(bare(model.backbone.config))
    plain.load_state_dict(plain_state(model.backbone), strict=False)  # a pooler is not read
    return plain.eval()


def _write_standard_base(model: StandardHead, folder: Path) -> None:
    """What transformers' own save_pretrained writes, from a plain copy where something was put in."""
    whole: Any = model.whole
    if descriptions(whole):
        with quiet(), torch.random.fork_rng(devices=[]):
            plain = type(whole)(whole.config)
        plain.load_state_dict(plain_state(whole))
        whole = plain
    whole.config.architectures = [type(whole).__name__]
    with quiet():
        whole.save_pretrained(str(folder))


def _write_added(model: nn.Module, network: nn.Module, folder: Path, info: dict[str, Any], *, lora: bool) -> None:
    """What was put into the network: for LoRA the folder peft reads; all of it in added.safetensors otherwise."""
    if lora:
        from regraft.layers.low_rank import save_adapter

        also = [head_name(network).partition(".")[0]] if isinstance(model, StandardHead) else []
        save_adapter(network, folder, base="backbone", also=also)
    if info["surgery"]:
        _save_tensors(added_state(network), folder / "added.safetensors")


def _note(model: nn.Module, info: Mapping[str, Any], *, lora: bool) -> str:
    """One paragraph: how to load this folder."""
    own = "With regraft: `from regraft.models.save import load_model; model, info = load_model('.')`."
    if info["base"] == "module":
        return (
            "The weights of a module of your own: `load_model('.', module=YourClass())`, or `load_state_dict` by hand."
        )
    if isinstance(model, StandardHead) and not info["surgery"]:
        kind = "SequenceClassification" if info["modality"] == "text" else "ImageClassification"
        kind = "CausalLM" if info["task"] == "language-model" else kind
        return f"Loads with `transformers.AutoModelFor{kind}.from_pretrained('.')`. {own}"
    if isinstance(model, StandardHead) and lora:
        return f"Loads with `peft.PeftModel.from_pretrained(model, '.')` around the model in `backbone/`. {own}"
    if isinstance(model, Graft) and info["base"] == "transformers":
        return f"Run this inside the folder, or: {own}"
    return own


def _save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """A safetensors file; tensors that share memory are written each for itself."""
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, file)


def _write_json(file: Path, value: Any) -> None:
    """Indented JSON."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _exchange(making: Path, folder: Path) -> None:
    """Put the finished folder in its place; the one that was there is moved aside first and then removed."""
    aside = folder.parent / f".{folder.name}.old-{os.getpid()}"
    if folder.exists():
        os.replace(folder, aside)
    os.replace(making, folder)
    shutil.rmtree(aside, ignore_errors=True)


# Reading


def _loaded_base(folder: Path, info: Mapping[str, Any], module: nn.Module | None) -> nn.Module:
    """The plain network of a folder with its weights."""
    if info["base"] == "module" and module is None:
        raise ModelError(
            f"{folder} holds the weights of {info['name']}, a class of your own; pass an instance of it as `module`"
        )
    if info["base"] in ("module", "network"):
        own = module if info["base"] == "module" else None
        network: nn.Module = own if own is not None else rebuilt(read_json(folder / "network.json"))
        if info["kind"] == "graft":
            example = torch.zeros(info["example_shape"])
            network = plain_backbone(network, example, modality=info["modality"]).module
            network = _cutting(info).applied(network)
        return _with_weights(network, folder / "model.safetensors")
    base = folder / "backbone" if (folder / "backbone").is_dir() else folder
    checked_config(base)
    checked_beside(folder)
    checked_weights(base)
    if info["kind"] == "standard":
        return _standard_base(base, info)
    from transformers import AutoModel

    config = config_of(base)
    if info["loads_plainly"]:
        option = {"add_pooling_layer": False} if takes_pooler_option(config) else {}
        with quiet():
            return from_folder(AutoModel, base, config=config, **option)
    return _with_weights(_cutting(info).applied(bare(config)), base / "model.safetensors")


def _standard_base(base: Path, info: Mapping[str, Any]) -> nn.Module:
    """The transformers model with its head from a plain folder."""
    with quiet():
        return from_folder(headed_class(info), base)


def _cutting(info: Mapping[str, Any]) -> Cutting:
    """What was taken off the top, from model.json."""
    return Cutting(dropped=tuple(info["cut"]["dropped"]), skipped=tuple(info["cut"]["skipped"]))


def _with_weights(module: nn.Module, file: Path) -> nn.Module:
    """The module with the weights of a file; a ModelError if they are not its own."""
    if not file.is_file():
        raise ModelError(f"{file} is missing, so the model cannot be loaded; copy the whole folder")
    try:
        module.load_state_dict(load_tensors(file))
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{file} does not hold the weights of {type(module).__name__} ({reason}); copy the whole folder"
        ) from None
    return module


def _with_added(folder: Path, info: Mapping[str, Any], network: nn.Module) -> nn.Module:
    """The network with what was put in, and its weights."""
    if not info["surgery"]:
        return network
    network = operated(network, info["surgery"])
    _, unexpected = network.load_state_dict(load_tensors(folder / "added.safetensors"), strict=False)
    if unexpected:
        raise ModelError(
            f"{folder}/added.safetensors holds {unexpected[0]!r}, which the model has not; copy the whole folder"
        )
    return network


def _loaded_graft(folder: Path, info: Mapping[str, Any], network: nn.Module) -> Graft:
    """The graft of a folder around its network."""
    if info["base"] == "transformers":
        example = example_inputs(network.config, info["modality"])
    else:
        example = {info["inputs"][0]: torch.zeros(info["example_shape"])}
    backbone = Backbone(
        module=network,
        name=info["name"],
        modality=info["modality"],
        inputs=tuple(info["inputs"]),
        example=example,
        source=str(folder),
        licence=info["licence"],
        places=tuple(Boundary(**place) for place in info["boundaries"]),
        cut=_cutting(info),
    )
    graft = Graft(backbone, depths=info["depths"], pools=info["pools"], num_outputs=info["num_outputs"])
    head = load_tensors(folder / "head.safetensors")
    put_linear(graft.head, head["weight"], head["bias"])
    return graft
