"""Memory that libraries keep for later: what was freed, and kernels for shapes that may come again."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import Any

# how many kernels are kept: by oneDNN, and by torch's own layer on top of it
KERNELS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"


def give_back() -> None:
    """Hand what was freed back to the system, where allocators can: glibc keeps what steps and threads freed, Arrow tables.

    Whoever asks for memory next pays for fresh pages, so it is for the places where one kind of work ends and another begins.
    """
    arrow = sys.modules.get("pyarrow")
    if arrow is not None:
        arrow.default_memory_pool().release_unused()
    trim = _trim()
    if trim is not None:
        trim(0)


def keep_few_kernels(number: int = 32) -> None:
    """Let oneDNN keep so many kernels, where it was not told otherwise and has not made its first one yet.

    It makes one for each shape and keeps 1,024 of them, and so does torch on top of it, at 0.7 MB together. Texts come in all
    lengths, and a step needs some twenty, so most are never used again; those of networks for images come in each step.
    """
    for variable in KERNELS:
        os.environ.setdefault(variable, str(number))


@cache
def _trim() -> Any:
    """`malloc_trim` of glibc; None where this is another C library."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
