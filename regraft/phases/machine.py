"""What the last bits of a result depend on beside the recipe: threads, versions and processor, and how two machines differ."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("regraft", "torch", "transformers", "peft", "numpy", "scikit-learn", "pyarrow", "safetensors")
DECISIVE = ("python", "regraft", "torch", "transformers", "peft", "numpy", "scikit-learn")  # of which a change can show


def machine() -> dict[str, Any]:
    """Threads, versions and hardware of this process, as they stand in manifest.json."""
    versions = {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}}
    return {"threads": torch.get_num_threads(), "versions": versions, "hardware": _hardware()}


def version_of(package: str) -> str | None:
    """Of an installed package; None where it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _hardware() -> dict[str, Any]:
    found: dict[str, Any] = {"machine": platform.machine(), "system": platform.system(), "cpus": os.cpu_count()}
    found |= {"processor": _processor(), "instructions": torch.backends.cpu.get_cpu_capability()}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["tf32"] = {
            "convolutions": torch.backends.cudnn.allow_tf32,
            "products": torch.get_float32_matmul_precision(),
        }
    return found


def _processor() -> str:
    """Its name as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A sentence for each thing that can change the last bits of what is computed from here on; none where all is as it was."""
    found: list[str] = []
    before, after = then.get("threads"), now["threads"]
    if before is not None and before != after:
        found.append(
            f"the run began with {_counted(before)} and goes on with {after}, so its last bits may differ; "
            f"OMP_NUM_THREADS={before} gives the same ones"
        )
    changed = [
        f"{name} ({old or 'not installed'} then, {new or 'not installed'} now)"
        for name, old, new in _pairs(then, now, "versions", DECISIVE)
    ]
    if changed:
        found.append(f"the run began with other versions, so its last bits may differ: {', '.join(changed)}")
    moved = [
        f"{name} ({old} then, {new} now)"
        for name, old, new in _pairs(then, now, "hardware", ("machine", "processor", "instructions", "gpu"))
    ]
    if moved:
        found.append(f"the run began on other hardware, so its last bits may differ: {', '.join(moved)}")
    return found


def _pairs(
    then: Mapping[str, Any], now: Mapping[str, Any], part: str, names: tuple[str, ...]
) -> list[tuple[str, Any, Any]]:
    """Name, old and new value of what differs; what an older manifest does not say is taken to be as it is."""
    old, new = then.get(part) or {}, now[part]
    return [(name, old[name], new.get(name)) for name in names if name in old and old[name] != new.get(name)]


def _counted(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"
