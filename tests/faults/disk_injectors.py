"""What a disk does to files that lie on it, and to a process that writes to it: at every system call of a save."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

# ---- damage to files that were written; each returns what it has touched


def flip(chosen: random.Random, checkpoints: list[Path]) -> list[Path]:
    """Change a bit of a file of the newest checkpoint."""
    file = _file(chosen, checkpoints[-1])
    raw = bytearray(file.read_bytes())
    bit = chosen.randrange(8 * len(raw))
    raw[bit // 8] ^= 1 << bit % 8
    file.write_bytes(raw)
    return [file]


def truncate(chosen: random.Random, checkpoints: list[Path]) -> list[Path]:
    """Cut a file short, by a byte or by almost all."""
    file = _file(chosen, checkpoints[-1])
    os.truncate(file, chosen.randrange(file.stat().st_size))
    return [file]


def delete(chosen: random.Random, checkpoints: list[Path]) -> list[Path]:
    """Remove a file."""
    file = _file(chosen, checkpoints[-1])
    file.unlink()
    return [file]


def swap(chosen: random.Random, checkpoints: list[Path]) -> list[Path]:
    """Exchange a file of the newest checkpoint with one of another, with another of its own, or the two newest folders."""
    newest, before = checkpoints[-1], checkpoints[-2]
    kind = chosen.choice(("same file", "own files", "folders"))
    if kind == "folders":
        pair = (newest, before)
    else:
        names = [file.name for file in sorted(newest.iterdir())]
        one, two = (chosen.sample(names, 2)) if kind == "own files" else [chosen.choice(names)] * 2
        pair = (newest / one, (newest if kind == "own files" else before) / two)
    beside = newest.with_name("beside")
    pair[0].rename(beside)
    pair[1].rename(pair[0])
    beside.rename(pair[1])
    return list(pair)


def blank(chosen: random.Random, checkpoints: list[Path]) -> list[Path]:
    """Fill a block of a file with zeros, one that is not zero already: a sector that was never written."""
    while True:
        file = _file(chosen, checkpoints[-1])
        raw = bytearray(file.read_bytes())
        size = min(len(raw), chosen.choice((16, 512, 4096)))
        begin = chosen.randrange(len(raw) - size + 1)
        if any(raw[begin : begin + size]):
            raw[begin : begin + size] = bytes(size)
            file.write_bytes(raw)
            return [file]


def _file(chosen: random.Random, folder: Path) -> Path:
    return chosen.choice(sorted(folder.iterdir()))


DAMAGE: dict[str, tuple[int, Callable[[random.Random, list[Path]], list[Path]]]] = {
    "bit flips": (1000, flip),
    "truncations": (200, truncate),
    "deletions": (100, delete),
    "swaps": (100, swap),
    "zero-filled blocks": (50, blank),
}


# ---- a disk that fails while it is written to

CALLS = ("open", "write", "fsync", "rename", "mkdir")


class Disk:
    """Counts the system calls below a folder that change it, and does something instead of one of them.

    A write can be cut in the middle: half of its bytes reach the disk before it fails.
    """

    def __init__(self, folder: Path, *, at: int | None, do: Callable[[str], None], half: bool = False) -> None:
        self.folder, self.at, self.do, self.half = str(folder), at, do, half
        self.calls: list[str] = []
        self.watched: set[int] = set()
        self.real = {name: getattr(os, name) for name in CALLS}

    def meets(self, name: str, path: object) -> bool:
        """Is this the call?"""
        inside = path in self.watched if isinstance(path, int) else str(path).startswith(self.folder)
        if not inside:
            return False
        self.calls.append(name)
        return len(self.calls) - 1 == self.at

    def open(self, path, flags, *rest, **options):
        """Every file that is opened to be written or synced."""
        if self.meets("open", path):
            self.do("open")
        descriptor = self.real["open"](path, flags, *rest, **options)
        if str(path).startswith(self.folder):
            self.watched.add(descriptor)
        return descriptor

    def write(self, descriptor, data):
        """A write to one of them."""
        if self.meets("write", descriptor):
            if self.half:
                self.real["write"](descriptor, bytes(data)[: len(data) // 2])
            self.do("write")
        return self.real["write"](descriptor, data)

    def fsync(self, descriptor):
        """A sync of one of them."""
        if self.meets("fsync", descriptor):
            self.do("fsync")
        self.real["fsync"](descriptor)

    def rename(self, source, target, **options):
        """A new name."""
        if self.meets("rename", source):
            self.do("rename")
        self.real["rename"](source, target, **options)

    def mkdir(self, path, *rest, **options):
        """A new folder."""
        if self.meets("mkdir", path):
            self.do("mkdir")
        self.real["mkdir"](path, *rest, **options)


@contextmanager
def failing(folder: Path, *, at: int | None, do: Callable[[str], None], half: bool = False) -> Generator[Disk]:
    """In this block the disk below `folder` is a `Disk`."""
    disk = Disk(folder, at=at, do=do, half=half)
    for name in CALLS:
        setattr(os, name, getattr(disk, name))
    try:
        yield disk
    finally:
        for name, real in disk.real.items():
            setattr(os, name, real)


def raising(number: int) -> Callable[[str], None]:
    """What a call of a failing disk does: raise the error of this number."""

    def do(name: str) -> None:
        raise OSError(number, os.strerror(number))

    return do


def restore(folder: Path, kept: Path) -> None:
    """A folder as it was when it was copied to `kept`."""
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
