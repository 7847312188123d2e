"""Checkpoints: a run's state as safetensors and JSON, written whole or not at all, and verified before it is used.

A checkpoint is a folder: `state.safetensors` (tensors by path), `state.json` (everything else), and `manifest.json` with
the sha256 of both, written last. It is made beside its final name, synced and renamed, so a folder with that name is
complete; a file that was damaged later is noticed by its hash, and the newest sound checkpoint is used instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from regraft.core.protocols import Hook, State
from regraft.core.run import Run
from regraft.core.values import Loss
from regraft.errors import RunError

FORMAT = "regraft.checkpoint/1"
TENSORS, VALUES, MANIFEST = "state.safetensors", "state.json", "manifest.json"
_TENSOR = "__tensor__"


def save(folder: Path, state: State) -> None:
    """Write `state` as the checkpoint `folder`, atomically.

    Raises:
        RunError: it cannot be written (full disk, read-only folder); what was there before is untouched.
    """
    tensors: dict[str, Tensor] = {}
    values = _without_tensors(state, "", tensors)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, partial / TENSORS)
        _write(partial / VALUES, json.dumps(values))
        hashes = {name: sha256(partial / name) for name in (TENSORS, VALUES)}
        _sync(partial / TENSORS)
        _write(partial / MANIFEST, json.dumps({"format": FORMAT, "sha256": hashes}, indent=1))
        _sync(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        free = shutil.disk_usage(folder.parent if folder.parent.exists() else folder.anchor).free
        reason = f"the checkpoint could not be written ({error.strerror})"
        raise RunError(f"{folder}: {reason}; {free / 1e9:.2f} GB are free there, make room and resume") from error


def load(folder: Path) -> State:
    """The state a checkpoint holds, once every file of it has been found sound.

    Raises:
        RunError: a file is missing or damaged; the sentence names it.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, expected in manifest["sha256"].items():
            if sha256(folder / name) != expected:
                raise RunError(f"{folder / name}: damaged since it was written (its sha256 differs from the manifest)")
        values, tensors = json.loads((folder / VALUES).read_text()), load_file(folder / TENSORS)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{folder}: not a sound checkpoint ({type(error).__name__}: {error})") from error
    return cast(State, _with_tensors(values, tensors))


def load_newest(folder: Path) -> tuple[State, Path, list[str]] | None:
    """The newest sound checkpoint below `folder`, where it lies, and a sentence for each damaged one that was passed over."""
    damaged: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            return load(path), path, damaged
        except RunError as error:
            damaged.append(str(error))
    return None


class Checkpointer(Hook):
    """Saves the run every `every` steps and keeps the newest `keep` checkpoints.

    It belongs at the end of the run's hooks: those before it have then acted on the step. While `enabled` is false it only
    keeps its place among them.
    """

    def __init__(self, folder: Path, *, every: int, keep: int = 2, enabled: bool = True) -> None:
        self.folder, self.every, self.keep, self.enabled = folder, every, keep, enabled

    def on_step(self, run: Run, loss: Loss) -> None:
        """Save when a multiple of `every` steps has been made."""
        if self.enabled and run.clock.step % self.every == 0 and run.clock.step < run.clock.total and not run.stopped:
            self.save(run)

    def save(self, run: Run) -> Path:
        """Save now; returns the checkpoint's folder."""
        done = sum(stage.steps for stage in run.recipe.stages[: run.index]) + run.clock.step
        path = self.folder / f"step-{done:08d}"
        save(path, run.state_dict())
        for old in sorted(self.folder.glob("step-*"))[: -self.keep]:
            shutil.rmtree(old)
        return path


# ---- files


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- nested state <-> JSON and flat tensors


def _without_tensors(value: object, path: str, tensors: dict[str, Tensor]) -> object:
    if value is None or isinstance(value, str | int | float):  # almost all of it: the log of every step
        return value
    if isinstance(value, Tensor):
        tensors[path] = value.detach()
        return {_TENSOR: path}
    if isinstance(value, Mapping):
        items = cast(Mapping[str, object], value).items()
        return {str(key): _without_tensors(item, f"{path}/{key}", tensors) for key, item in items}
    if isinstance(value, list | tuple):
        return [_without_tensors(item, f"{path}/{i}", tensors) for i, item in enumerate(cast(list[object], value))]
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> object:
    if isinstance(value, dict):
        items = cast(dict[str, Any], value)
        if items.keys() == {_TENSOR}:
            return tensors[items[_TENSOR]]
        return {key: _with_tensors(item, tensors) for key, item in items.items()}
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in cast(list[Any], value)]
    return value
