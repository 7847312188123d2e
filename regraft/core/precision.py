"""In which precision a step is computed: what a device can do, and the block of code that does it.

Both passes run in the lower precision where it is safe; parameters, gradients and optimizer state stay in fp32 (Micikevicius et
al., 2018, arXiv:1710.03740, section 3.1). It is torch's own autocast, which NVIDIA's Apex has given way to.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
HALVES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}  # what autocast computes in
TF32_CAPABILITY = (8, 0)  # of the first GPUs with TF32 units, Ampere


def supports(precision: Precision, device: torch.device) -> bool:
    """Can this kind of device compute in a precision without imitating it? Measuring tells how fast."""
    if precision == "fp32":
        return True
    if precision == "tf32":
        return device.type == "cuda" and torch.cuda.get_device_capability(device) >= TF32_CAPABILITY
    if device.type == "cuda":
        return precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu"


def usable(precision: Precision, device: torch.device) -> tuple[Precision, str | None]:
    """The precision asked for, or fp32 and the sentence that says so where the device has not got it."""
    if supports(precision, device):
        return precision, None
    return (
        "fp32",
        f"precision {precision} has no effect: {device.type} has no {precision} arithmetic, so steps are fp32",
    )


def computing(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast for bf16 and fp16, TF32 units for tf32, nothing for fp32."""
    if precision == "fp32":
        return nullcontext()
    if precision == "tf32":
        return _tf32()
    return torch.autocast(device.type, dtype=HALVES[precision])


def computing_backward(precision: Precision) -> AbstractContextManager[Any]:
    """For the backward pass: autocast chose its types in the forward pass, the TF32 units are asked for in both."""
    return _tf32() if precision == "tf32" else nullcontext()


@contextmanager
def _tf32() -> Generator[None]:
    """Matrix products of fp32 tensors on a GPU's TF32 units: inputs rounded to 10 bits after the point, sums in fp32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
