"""Freed memory goes back to the system, and kernels for shapes that do not come again are not kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from regraft.core.allocator import KERNELS, give_back, keep_few_kernels


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_was_freed_between_things_that_are_kept_is_given_back():
    blocks = [np.ones(16_000, np.uint8) for _ in range(4000)]  # 64 MB in blocks that come from the heap
    kept = blocks[::50]  # so that the top of the heap stays in use
    before = resident()
    del blocks
    give_back()
    assert resident() < before - 40_000_000
    assert all(block.all() for block in kept)


def test_the_users_own_number_of_kernels_stands(monkeypatch):
    ours, theirs = KERNELS
    monkeypatch.setenv(ours, "7")
    monkeypatch.delenv(theirs, raising=False)
    keep_few_kernels(5)
    assert (os.environ[ours], os.environ[theirs]) == ("7", "5")


SHAPES = """
import json, os, sys
import torch
from regraft.core.allocator import keep_few_kernels
if sys.argv[1] == "few":
    keep_few_kernels()
weight = torch.randn(384, 384).bfloat16()
def resident():
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
torch.nn.functional.linear(torch.randn(8, 384).bfloat16(), weight)
before = resident()
for rows in range(9, 600):
    torch.nn.functional.linear(torch.randn(rows, 384).bfloat16(), weight)
print(json.dumps(resident() - before))
"""


def test_texts_of_all_lengths_leave_few_kernels_behind():
    import torch

    if sys.platform != "linux" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("the processor does not multiply bf16 by kernels of oneDNN")
    environment = {k: v for k, v in os.environ.items() if k not in KERNELS}
    grown = {}
    for how in ("few", "all"):
        out = subprocess.run(
            [sys.executable, "-c", SHAPES, how], env=environment, capture_output=True, text=True, check=True
        )
        grown[how] = json.loads(out.stdout)
    assert grown["few"] < 0.25 * grown["all"]
