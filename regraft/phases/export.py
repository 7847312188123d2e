"""A finished model in another form: as what it differs in from its base, or with its low-rank changes added to the weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from regraft.data.encode import load_preprocessor, save_preprocessor
from regraft.errors import ModelError, RunError
from regraft.models.delta import CHANGED, Base, bytes_of, changes, load_base, same_bits, started
from regraft.models.graft import Graft
from regraft.models.safety import read_json
from regraft.models.save import load_model, save_model
from regraft.models.standard import StandardHead
from regraft.models.surgery import descriptions
from regraft.phases.predict import CALIBRATION, model_folder

BESIDE = ("labels.json", "preprocessing.json", CALIBRATION, "head.safetensors")  # small, and the same for a whole model


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and how much room it takes."""

    folder: str
    base: str | None  # what it needs besides; None where it stands alone
    tensors: int
    num_bytes: int  # of all files
    base_bytes: int  # of the base's weights; 0 where none is needed

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)

    def sentence(self) -> str:
        """Where it is and its megabytes, beside the base's."""
        size = f"{self.folder}: {self.num_bytes / 1e6:,.2f} MB, {self.tensors} tensors"
        if self.base is None:
            return size
        share = self.num_bytes / self.base_bytes
        large = "; nearly everything was trained, so a delta saves nothing" if share > 0.9 else ""
        return (
            f"{size}; its base {self.base} has {self.base_bytes / 1e6:,.2f} MB, {1 / share:,.1f} times as many{large}"
        )


def export_delta(run: Path, out: Path, *, base: str | None = None) -> Exported:
    """Write what a finished model differs in from its pretrained base, and prove that it gives back every bit of it.

    Args:
        run: a run directory, or a model folder.
        out: a new folder; `regraft predict OUT FILE` and all else that takes a run takes it.
        base: name of the base, where it is not found under the name the run knew it by.

    Raises:
        RunError: there is no finished model, or `out` exists.
        ModelError: the model has no pretrained base, or is already a delta.
    """
    folder = model_folder(run)
    _require_new(out)
    info = read_json(folder / "model.json")
    if info.get("base") != "transformers" or "delta" in info:
        what = "is a delta already" if "delta" in info else "was not made from a pretrained network"
        raise ModelError(f"{folder} {what}, so there is no base to leave out; keep the model folder")
    model, _ = load_model(folder)
    network = network_of(model)
    below = load_base(base or info["name"], modality=info["modality"])
    changed = changes(network, started(_configured(folder), info, below))
    about = info | {"delta": {"base": below.name, "sha256": below.sha256, "bytes": below.num_bytes}}

    def write(making: Path) -> None:
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in changed.items()}
        save_file(tensors, making / CHANGED)
        (making / "model.json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for name in BESIDE:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, making / name)
        if isinstance(model, StandardHead):
            shutil.copyfile(_configured(folder) / "config.json", making / "config.json")
        (making / "README.md").write_text(_page(about), encoding="utf-8")
        _prove(making, model, below)

    _written(out, write)
    return _told(out, below.name, len(changed), bytes_of(below.module.state_dict()))


def export_merged(run: Path, out: Path) -> Exported:
    """Write a finished model with its LoRA added to the weights: a plain network that needs neither peft nor a base.

    Raises:
        RunError: there is no finished model, or `out` exists.
        ModelError: it holds no LoRA, or something else that cannot be added to weights.
    """
    from regraft.layers.low_rank import merge

    folder = model_folder(run)
    _require_new(out)
    model, info = load_model(folder)
    kinds = [description["kind"] for description in descriptions(network_of(model))]
    if kinds != ["lora"]:
        held = ", ".join(kinds) or "nothing that was put in"
        raise ModelError(
            f"{folder}: only LoRA can be added to the weights, and the model holds {held}; keep it as it is"
        )
    if isinstance(model, Graft):
        model.backbone = merge(model.backbone)
    elif isinstance(model, StandardHead):
        model.whole = merge(model.whole)
    else:
        model = merge(model)
    preprocessor = load_preprocessor(folder)

    def write(making: Path) -> None:
        made = save_model(
            model,
            making / "model",
            preprocessor_json=preprocessor.to_json(),
            labels=info["labels"],
            task=info["task"],
            extra=info["extra"],
        )
        save_preprocessor(preprocessor, made)
        if (folder / CALIBRATION).is_file():
            shutil.copyfile(folder / CALIBRATION, made / CALIBRATION)
        for file in made.iterdir():
            os.replace(file, making / file.name)
        made.rmdir()

    _written(out, write)
    return _told(out, None, len(network_of(model).state_dict()), 0)


def network_of(model: nn.Module) -> nn.Module:
    """The network inside a graft or a standard head, else the model."""
    return model.backbone if isinstance(model, Graft) else model.whole if isinstance(model, StandardHead) else model


def _configured(folder: Path) -> Path:
    """Where config.json of a model folder lies: LoRA has the plain network in `backbone/`."""
    return folder / "backbone" if (folder / "backbone").is_dir() else folder


def _require_new(out: Path) -> None:
    if out.exists():
        raise RunError(f"{out} exists; give a new folder")


def _written(out: Path, write: Callable[[Path], None]) -> None:
    """A folder that is there whole or not at all."""
    making = out.parent / f".{out.name}.making-{os.getpid()}"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        write(making)
        os.replace(making, out)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _prove(folder: Path, model: nn.Module, base: Base) -> None:
    """A ModelError unless the delta gives every tensor of the model back, bit for bit."""
    again, _ = load_model(folder, base=base)
    ours: dict[str, Tensor] = model.state_dict()
    theirs = again.state_dict()
    wrong = [name for name in ours.keys() | theirs.keys() if not _same(ours.get(name), theirs.get(name))]
    if wrong:
        raise ModelError(f"the delta does not give {min(wrong)!r} back as it was; keep the model folder")


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and same_bits(one, other)


def _told(out: Path, base: str | None, tensors: int, base_bytes: int) -> Exported:
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return Exported(folder=str(out), base=base, tensors=tensors, num_bytes=size, base_bytes=base_bytes)


def _page(about: dict[str, Any]) -> str:
    """The README of a delta."""
    base = about["delta"]
    return (
        f"# {about['name']}, adapted: a delta\n\n"
        f"`{CHANGED}` holds what differs from {base['base']} (sha256 of its weights {base['sha256']}), which is needed besides. "
        "With regraft: `regraft predict . FILE`, or `import regraft as rg; rg.load('.').predict(texts)`; many on one base: "
        f"`rg.load_variants({base['base']!r}, {{'name': '.'}})`.\n"
    )
