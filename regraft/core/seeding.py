"""Randomness as a function of (seed, stage, step): what makes a resumed run draw the numbers it would have drawn."""

from __future__ import annotations

import zlib

import torch

_MASK = (1 << 64) - 1


def mix(*numbers: int) -> int:
    """A 63-bit seed from several integers; the same on every machine and in every process (SplitMix64, Steele et al. 2014)."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state ^ (number & _MASK)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1


def stream(name: str) -> int:
    """A number for `mix` that sets the draws of one part off from those of others with the same seed and step (CRC-32)."""
    return zlib.crc32(name.encode())


def generator(*numbers: int) -> torch.Generator:
    """A private CPU generator seeded with `mix(*numbers)`."""
    return torch.Generator().manual_seed(mix(*numbers))


def seed_default(*numbers: int) -> None:
    """Seed torch's default generators (dropout and noise layers draw from them). `fit` restores the caller's state at its end."""
    seed = mix(*numbers)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
