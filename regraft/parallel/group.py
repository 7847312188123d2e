"""Processes that sum tensors: one leads and starts the others, which are watched and never waited for in vain.

The others are workers of `parallel.processes`: one that is silent is killed, and the sums of one that is gone fail at once. They
meet in a folder that only this user can read, and talk over the loopback device.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore

from regraft.core.ranks import RankLost
from regraft.errors import RunError
from regraft.parallel.processes import SILENT, Event, Processes

CONNECT = timedelta(seconds=20)  # once all are there
PATIENCE = timedelta(days=30)  # a sum waits for as long as the others are alive, which their heartbeats tell
LOOK = 0.05  # seconds between two looks at who is there


@dataclass(frozen=True)
class Member:
    """A process of a group that is connected, as `core.ranks.Ranks`."""

    rank: int
    count: int
    lost: Callable[[RuntimeError], RunError] = lambda error: RankLost(f"another process of the run is gone ({error})")

    def sum(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes.

        Raises:
            RankLost: another process is gone.
        """
        options = dist.AllreduceOptions()
        options.timeout = PATIENCE
        try:
            dist.distributed_c10d._get_default_group().allreduce([tensor], options).wait()  # pyright: ignore
        except RuntimeError as error:
            raise self.lost(error) from None


def follow(rank: int, count: int, folder: Path) -> Member:
    """This process as one that the leader of `folder` has started. Its connections end with `dist.destroy_process_group`."""
    store = FileStore(str(folder / "meeting"), count)
    store.set(f"here/{rank}", "")
    while not store.check(["all here"]):
        time.sleep(LOOK)
    _connect(store, rank, count)
    return Member(rank, count)


@contextmanager
def lead(
    count: int, target: str, work: Mapping[str, Any], *, log: Path, threads: int | None = None, silent: float = SILENT
) -> Generator[Member]:
    """The first of `count` processes, which are connected in the block.

    Args:
        count: of all of them.
        target: `module:function` that the others run; it calls `follow` with the `rank`, `count` and `folder` of its work.
        work: JSON values that the others get besides.
        log: where they write what they print.
        threads: of each of them.
        silent: seconds without a heartbeat after which one is killed.

    Raises:
        RankLost: one of the others has ended, in the block or before all were there.
        RunError: one of them has failed, and would again.
    """
    with tempfile.TemporaryDirectory(prefix="regraft-") as folder:
        crew = Crew(Processes(count - 1, target, log=log, silent=silent, threads=threads), count, log)
        try:
            for rank in range(1, count):
                crew.pool.start(rank, {**work, "rank": rank, "count": count, "folder": folder})
            crew.thread.start()
            store = FileStore(str(Path(folder) / "meeting"), count)
            while not store.check([f"here/{rank}" for rank in range(1, count)]):
                if crew.ended:
                    raise crew.trouble()
                time.sleep(LOOK)
            store.set("all here", "")
            try:
                _connect(store, 0, count)
            except RuntimeError as error:
                raise crew.trouble(error) from None
            yield Member(0, count, crew.trouble)
        finally:
            crew.dismiss()
            if dist.is_initialized():
                dist.destroy_process_group()


def _connect(store: FileStore, rank: int, count: int) -> None:
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=CONNECT)


@dataclass
class Crew:
    """The other processes, and what became of them; a thread watches, for the leader may be waiting for one that is gone."""

    pool: Processes
    count: int
    log: Path
    ended: list[Event] = field(default_factory=list[Event])
    dismissed: bool = False

    def __post_init__(self) -> None:
        """The thread that watches them."""
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def trouble(self, error: RuntimeError | None = None) -> RunError:
        """Why a sum failed, from what is known of the others; a moment is given for it to become known."""
        deadline = time.monotonic() + 5
        while not self.ended and time.monotonic() < deadline:
            time.sleep(LOOK)
        if not self.ended:
            return RankLost(f"the processes of the run have lost each other ({error})")
        rank, kind, content = self.ended[0]
        which = f"process {rank + 1} of {self.count}"
        if kind == "died":
            return RankLost(f"{which} {content}")
        if kind == "error":
            return RunError(f"{which} failed ({content}); {self.log} has the rest")
        return RunError(
            f"{which} came to its end before the others, so one of them has decided differently; use one process"
        )

    def dismiss(self) -> None:
        """End all of them."""
        self.dismissed = True
        if self.thread.is_alive():
            self.thread.join()
        self.pool.close()

    def _watch(self) -> None:
        while not self.dismissed:
            self.ended += self.pool.wait(0.2)
            if not self.pool.processes:
                time.sleep(LOOK)
