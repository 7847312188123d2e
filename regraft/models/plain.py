"""A backbone as a folder that plain transformers loads: a shorter configuration where it can say so, else the whole one."""

from __future__ import annotations

import copy
import inspect
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from regraft.config.secrets import redact
from regraft.models.backbone import Boundary
from regraft.models.blocks import blocks, depth_of
from regraft.models.load import model_class, quiet
from regraft.models.trace import call, tensors_in

BESIDE = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
    "merges.txt", "spiece.model", "sentencepiece.bpe.model", "preprocessor_config.json",
)  # fmt: skip


def bare(config: Any) -> nn.Module:
    """The headless transformers model of a configuration, with fresh weights, and without a pooler where it may be."""
    extra = {"add_pooling_layer": False} if takes_pooler_option(config) else {}
    with quiet(), torch.random.fork_rng(devices=[]):
        return model_class(config)(config, **extra).eval()


def takes_pooler_option(config: Any) -> bool:
    """Can the headless model of a configuration be asked for without a pooler?"""
    return "add_pooling_layer" in inspect.signature(model_class(config)).parameters


def save_backbone(
    module: nn.Module,
    state: Mapping[str, Tensor],
    folder: Path,
    *,
    places: list[Boundary],
    outputs: Mapping[int, Tensor],
    example: Mapping[str, Tensor],
) -> bool:
    """Write config.json and model.safetensors; can plain transformers load the folder as it is?

    Args:
        module: the network, perhaps cut; its configuration may still be that of the whole one.
        state: its weights under the names of the plain network.
        folder: to write to.
        places: boundaries at which the plain network must give the same bits.
        outputs: what the network gives there on the example, by depth.
        example: inputs to compare on.
    """
    for config in _configurations(module):
        candidate = _holding(config, state)
        if candidate is not None and _agrees(candidate, places, outputs, example):
            with quiet():
                candidate.save_pretrained(str(folder))  # type: ignore[operator]
            return True
    module.config.save_pretrained(str(folder))  # type: ignore[union-attr]
    tensors = {name: value.detach().contiguous().clone() for name, value in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return False


def copy_beside(source: str | None, folder: Path) -> None:
    """Copy the tokenizer and the image preprocessor of the pretrained model, so that the folder can be used alone."""
    for name in BESIDE if source else ():
        file = Path(source or "") / name
        if file.is_file() and name.endswith("_config.json"):
            (folder / name).write_text(redact(file.read_text(encoding="utf-8")), encoding="utf-8")
        elif file.is_file():
            shutil.copyfile(file, folder / name)


def _configurations(module: nn.Module) -> Iterator[Any]:
    """Configurations that may describe a network with these blocks: its own, then ones with fewer layers or stages."""
    config: Any = module.config
    names = [block.name for block in blocks(module)]
    yield config
    if hasattr(config, "depths"):
        stages: dict[str, int] = {}
        for name in names:
            stage = ".".join(name.split(".")[:-2])
            stages[stage] = stages.get(stage, 0) + 1
        yield _shorter(config, list(stages.values()))
    elif hasattr(config, "num_hidden_layers"):
        fewer = copy.deepcopy(config)
        fewer.num_hidden_layers = len(names)
        for listed in ("layer_types",):
            if isinstance(getattr(fewer, listed, None), list):
                setattr(fewer, listed, getattr(fewer, listed)[: len(names)])
        yield fewer


def _shorter(config: Any, depths: list[int]) -> Any:
    """A configuration of a network in stages with these numbers of blocks."""
    values = {
        key: value
        for key, value in config.to_dict().items()
        if key not in ("stage_names", "out_features", "out_indices")
    }
    for key in ("hidden_sizes", "num_heads"):
        if isinstance(values.get(key), list):
            values[key] = values[key][: len(depths)]
    return type(config)(**values | {"depths": depths})


def _holding(config: Any, state: Mapping[str, Tensor]) -> nn.Module | None:
    """The plain model of a configuration with these weights, or None if they do not fit.

    A final norm that the cut network passes over is left as it is made, and is not read.
    """
    try:
        candidate = bare(config)
        missing, unexpected = candidate.load_state_dict(dict(state), strict=False)
    except (RuntimeError, ValueError, IndexError):
        return None  # another shape: the next configuration is tried
    above = len(blocks(candidate))
    fits = all(depth_of(name, candidate) > above for name in missing) and not unexpected
    return candidate if fits else None


@torch.no_grad()
def _agrees(
    candidate: nn.Module, places: list[Boundary], outputs: Mapping[int, Tensor], example: Mapping[str, Tensor]
) -> bool:
    """Does the plain model give the same bits at the boundaries?"""
    seen: dict[int, Tensor] = {}
    handles = [
        candidate.get_submodule(place.name).register_forward_hook(
            lambda part, args, out, depth=place.depth: seen.update({depth: tensors_in(out)[0]})
        )
        for place in places
    ]
    try:
        call(candidate, example)
    except RuntimeError:
        return False
    finally:
        for handle in handles:
            handle.remove()
    return all(torch.equal(seen[place.depth], outputs[place.depth]) for place in places)
