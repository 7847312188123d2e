"""Files that are written whole or not at all, and the sha256 that says whether they are still what was written."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

PARTIAL, REPLACED = ".partial", ".replaced"
CHUNK = 4 << 20  # bytes that are hashed and written in one go: they are still in the processor's cache for the second


def write_synced(path: Path, parts: Iterable[bytes | memoryview]) -> str:
    """Write the parts one after the other and sync the file; returns the sha256 of what was written.

    The hash is of the bytes in memory, so that what a disk made of them is found out when they are read.

    Raises:
        OSError: the disk is full, broken or read-only; what there is of the file is left.
    """
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        for part in parts:
            whole = memoryview(part)
            for begin in range(0, len(whole), CHUNK):
                left = whole[begin : begin + CHUNK]
                digest.update(left)
                while len(left):
                    left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def replace_file(path: Path, content: bytes) -> str:
    """Write a file beside its name, sync and rename it; returns the sha256. Killed at any instant, old or new is there whole.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    partial = partial_of(path)
    try:
        digest = write_synced(partial, [content])
        os.rename(partial, path)
    except OSError:
        discard(partial)
        raise
    sync_folder(path.parent)
    return digest


def partial_of(path: Path) -> Path:
    """Where a file or folder is made before it gets its name."""
    return path.with_name(f".{path.name}{PARTIAL}")


def replaced_of(path: Path) -> Path:
    """Where a folder stays while another one takes its name."""
    return path.with_name(f".{path.name}{REPLACED}")


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    sync_file(path)


def sync_file(path: Path) -> None:
    """Make what another hand has written to a file durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """Remove a file or folder that may be there, as far as the disk lets one: it is an unfinished or superseded one."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError:  # read-only or failing: it stays under a name that nothing reads, and `clean` comes by later
        return


def clean(folder: Path) -> None:
    """Put a folder in order after a process was killed in it: half-written things go, half-replaced ones come back."""
    for old in folder.glob(f".*{REPLACED}"):
        place = old.with_name(old.name.removeprefix(".").removesuffix(REPLACED))
        if place.exists():
            discard(old)
        else:
            os.rename(old, place)
    for unfinished in folder.glob(f".*{PARTIAL}"):
        discard(unfinished)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes.

    Raises:
        OSError: it is not there or cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256", _bufsize=CHUNK).hexdigest()
