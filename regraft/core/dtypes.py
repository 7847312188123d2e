"""The floating-point formats that networks are trained in, as facts: bits, range, precision, and room."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NumberFormat:
    """A binary floating-point format with a sign bit, `exponent` bits and `mantissa` bits after the point (IEEE 754)."""

    name: str
    exponent: int
    mantissa: int
    stored_bits: int  # of a number in memory

    @property
    def bits(self) -> int:
        """That a number has: 1 + exponent + mantissa."""
        return 1 + self.exponent + self.mantissa

    @property
    def largest(self) -> float:
        """The largest finite number, (2 - 2^-m) 2^(2^(e-1) - 1)."""
        return (2 - 2.0**-self.mantissa) * 2.0 ** (2 ** (self.exponent - 1) - 1)

    @property
    def smallest_normal(self) -> float:
        """The smallest positive number with all its digits, 2^(2 - 2^(e-1))."""
        return 2.0 ** (2 - 2 ** (self.exponent - 1))

    @property
    def smallest(self) -> float:
        """The smallest positive number, a subnormal one with a single digit."""
        return self.smallest_normal * 2.0**-self.mantissa

    @property
    def epsilon(self) -> float:
        """From 1 to the next larger number, 2^-m."""
        return 2.0**-self.mantissa

    @property
    def decimal_digits(self) -> float:
        """How many decimal digits a number is worth, (m + 1) log10 2."""
        return (self.mantissa + 1) * math.log10(2)


FP32 = NumberFormat(name="fp32", exponent=8, mantissa=23, stored_bits=32)
TF32 = NumberFormat(name="tf32", exponent=8, mantissa=10, stored_bits=32)  # inside a GPU's units only: 19 bits take 32
BF16 = NumberFormat(name="bf16", exponent=8, mantissa=7, stored_bits=16)
FP16 = NumberFormat(name="fp16", exponent=5, mantissa=10, stored_bits=16)
CARD: tuple[NumberFormat, ...] = (FP32, TF32, BF16, FP16)


PUBLISHED = (1.3, 2.0)  # times as fast as fp32, what is usually told of mixed precision


def published() -> str:
    """`published: 1.3 to 2.0 times, on GPUs with units for it`."""
    return f"published: {PUBLISHED[0]} to {PUBLISHED[1]} times, on GPUs with units for it"
