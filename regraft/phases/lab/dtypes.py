"""Number formats: what overflows, what underflows and what is lost when many small numbers are added."""

from __future__ import annotations

import torch

from regraft.phases.dtypes import card
from regraft.phases.lab.parts import Demonstration, Table

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LARGE, SMALL, STEP, TIMES = 70_000.0, 1e-8, 1e-3, 2000


def summed(dtype: torch.dtype) -> float:
    """1 plus `STEP`, `TIMES` times, each sum rounded to the format."""
    total, step = torch.ones((), dtype=dtype), torch.tensor(STEP, dtype=dtype)
    for _ in range(TIMES):
        total = total + step
    return float(total)


def show(seed: int = 0) -> Demonstration:
    """The card of the formats, and three things done in each; nothing is drawn at random."""
    large = {name: float(torch.tensor(LARGE, dtype=dtype)) for name, dtype in FORMATS.items()}
    small = {name: float(torch.tensor(SMALL, dtype=dtype)) for name, dtype in FORMATS.items()}
    scaled = float(torch.tensor(SMALL * 2**16, dtype=torch.float16)) / 2**16
    sums = {name: summed(dtype) for name, dtype in FORMATS.items()}
    columns = ("format", "exponent", "mantissa", "largest", "smallest normal", "decimal digits")
    rows = [
        (
            each["name"],
            f"{each['exponent']} bits",
            f"{each['mantissa']} bits",
            f"{each['largest']:.6g}",
            f"{each['smallest_normal']:.2g}",
            f"{each['decimal_digits']:.1f}",
        )
        for each in card()
    ]
    return Demonstration(
        title="Number formats of training",
        about="A format has a sign, an exponent that decides its range and a mantissa that decides its precision. "
        "`regraft dtypes` "
        "prints the card and times matrix products in each on your machine.",
        findings=(
            f"{LARGE:,.0f} is {large['fp16']} in fp16, whose largest number is 65,504, and {large['bf16']:,.0f} in "
            f"bf16, which has the "
            "range of fp32.",
            f"A gradient of {SMALL:g} is {small['fp16']:g} in fp16; scaled by 65,536 before the backward pass and "
            f"back after it, it is "
            f"{scaled:.3g}. That is what loss scaling is for; bf16 needs none ({small['bf16']:.3g}).",
            f"1 and {TIMES:,} times {STEP:g} is {sums['fp32']:.3f} in fp32, {sums['fp16']:.3f} in fp16 and "
            f"{sums['bf16']:.3f} in bf16, where a "
            "step is less than half the distance to the next number: weights and their updates stay in fp32.",
        ),
        numbers={"large": {n: str(v) for n, v in large.items()}, "small": small, "scaled": scaled, "sums": sums},
        tables=(
            Table(columns=columns, rows=rows),
            Table(
                columns=("", *FORMATS),
                rows=[
                    (f"{LARGE:,.0f}", *(f"{v:,.0f}" for v in large.values())),
                    (f"{SMALL:g}", *(f"{v:.3g}" for v in small.values())),
                    (f"1 + {TIMES:,} × {STEP:g}", *(f"{v:.3f}" for v in sums.values())),
                ],
            ),
        ),
        recipe="train: {precision: bf16}",
    )
