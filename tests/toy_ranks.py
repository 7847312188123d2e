"""Work for processes of a group: sums, and ways of not coming to an end."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from regraft.parallel.group import follow


def sums(work: dict[str, Any]) -> dict[str, Any]:
    """Take part in `times` sums."""
    member = follow(work["rank"], work["count"], Path(work["folder"]))
    for _ in range(work["times"]):
        member.sum(torch.full((3,), float(member.rank)))
    return {}


def ends_within(work: dict[str, Any]) -> dict[str, Any]:
    """Take part in one sum, and then get the signal `signal`."""
    member = follow(work["rank"], work["count"], Path(work["folder"]))
    member.sum(torch.zeros(1))
    os.kill(os.getpid(), work["signal"])
    return {}


def never_comes(work: dict[str, Any]) -> dict[str, Any]:
    """Be killed before the others are met."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def fails(work: dict[str, Any]) -> dict[str, Any]:
    """Take part in one sum, and then fail."""
    member = follow(work["rank"], work["count"], Path(work["folder"]))
    member.sum(torch.zeros(1))
    try:
        raise ValueError("no such thing")
    finally:
        dist.destroy_process_group()
