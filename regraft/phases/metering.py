"""What a phase cost: seconds, CPU seconds, peak memory, counted FLOPs and bytes written, as one line of the ledger."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regraft.core.allocator import give_back
from regraft.core.flops import counted
from regraft.core.forward import inputs_of
from regraft.core.modes import eval_mode
from regraft.core.values import Batch, size


@dataclass
class Meter:
    """Measured while a phase runs; `flops` and `bytes` are counted by the phase itself."""

    phase: str
    flops: float = 0.0
    bytes: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    gate: dict[str, Any] | None = None

    def judge(self, passed: bool, sentence: str) -> None:
        """Say whether the phase reached what the next one counts on, with the numbers that decide."""
        self.gate = {"passed": passed, "sentence": sentence}

    def line(self) -> dict[str, Any]:
        """The line of the ledger."""
        return {
            "phase": self.phase,
            "seconds": round(self.seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "peak_bytes": self.peak_bytes,
            "flops": self.flops,
            "bytes": self.bytes,
        } | ({} if self.gate is None else {"gate": self.gate})


@contextmanager
def metered(phase: str) -> Generator[Meter]:
    """Measures the block; read the meter after it."""
    meter = Meter(phase)
    give_back()
    _reset_peak()
    wall, cpu = time.perf_counter(), _cpu_seconds()
    try:
        yield meter
    finally:
        meter.seconds = time.perf_counter() - wall
        meter.cpu_seconds = _cpu_seconds() - cpu
        meter.peak_bytes = peak_memory()


def _cpu_seconds() -> float:
    """Of this process, and of those it has started that have ended."""
    others = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + others.ru_utime + others.ru_stime


def peak_memory() -> int:
    """Highest resident memory of this process in bytes: since `_reset_peak` on Linux, since its start elsewhere."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _reset_peak() -> None:
    """Let the kernel forget the peak so far, where it allows that; else the peak is since the start of the process."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        try:
            reset.write_text("5")
        except OSError:
            return


def forward_flops(model: nn.Module, batch: Batch) -> float:
    """FLOPs of one forward pass per unit of the batch: per token where there are tokens, else per example."""
    inputs = {key: batch[key] for key in inputs_of(model)}
    with eval_mode(model), torch.no_grad(), counted() as counter:  # counting must not move statistics
        model(**inputs) if hasattr(model, "inputs") else model(batch["x"])
    return counter.get_total_flops() / units(batch)


def step_flops(compute: Callable[[], torch.Tensor], units_in_batch: int) -> float:
    """FLOPs of one forward and backward pass per unit; `compute` returns the loss."""
    with counted() as counter:
        compute().backward()
    return counter.get_total_flops() / units_in_batch


def units(batch: Mapping[str, torch.Tensor]) -> int:
    """Tokens of a batch, padding included, or its examples where nothing is ragged."""
    return int(batch["input_ids"].numel()) if "input_ids" in batch else size(dict(batch))
