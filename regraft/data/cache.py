"""The cache folder: where read files, embedded samples and content hashes are kept, and how to write into it safely."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from regraft.errors import ConfigError, DataError, suggest

CHUNK = 1 << 20
KINDS = {  # folder of the cache -> what is in it
    "archives": "archives of data, extracted",
    "checks": "which images cannot be decoded",
    "encoded": "splits too large for memory, encoded for a model",
    "hashes": "hashes of files, by size and time of change",
    "samples": "embedded samples, written as ordinary files",
    "stores": "results of frozen networks, by weights, cut, precision and data",
    "tables": "files that were read, as memory-mapped tables",
    "units": "which rows belong together, for splits",
    "weights": "weights of .bin, .pt and .pth files, as safetensors",
}


def cache_folder(*parts: str) -> Path:
    """The folder `REGRAFT_CACHE` (default `~/.cache/regraft`) / `parts`, made if it is not there."""
    base = Path(os.environ.get("REGRAFT_CACHE") or "~/.cache/regraft").expanduser()
    folder = base.joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the cache folder {folder} cannot be made ({error.strerror}); set REGRAFT_CACHE to another one"
        ) from error
    return folder


def trim(folder: Path) -> None:
    """Remove the entries of a folder of the cache that were used longest ago, until the rest fits into `cache_limit`."""
    entries = sorted(entries_of(folder), key=lambda entry: entry.used, reverse=True)
    room = cache_limit()
    for entry in entries:
        room -= entry.num_bytes
        if room < 0:
            entry.remove()


def cache_limit() -> int:
    """Bytes that entries which can be made again may have: `REGRAFT_CACHE_GB` (default 20) gigabytes."""
    given = os.environ.get("REGRAFT_CACHE_GB") or "20"
    try:
        limit = float(given)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < 1e9:
        raise ConfigError(f"REGRAFT_CACHE_GB must be a number of gigabytes, got {given!r}; set it to 20, say")
    return int(limit * 1e9)


@dataclass(frozen=True)
class Entry:
    """A file or folder of the cache."""

    path: Path
    num_bytes: int
    used: float  # seconds since the epoch

    def remove(self) -> None:
        """Delete it."""
        if self.path.is_dir():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)


def entries_of(folder: Path, *, unfinished: bool = False) -> list[Entry]:
    """What a folder of the cache holds, in the order of names; what is just being made only if asked."""
    found: list[Entry] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not unfinished and (path.name.startswith(".") or ".part-" in path.name):
            continue
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        found.append(Entry(path, sum(file.stat().st_size for file in files), path.stat().st_mtime))
    return found


@dataclass(frozen=True)
class Kind:
    """A folder of the cache."""

    name: str
    what: str
    entries: int
    num_bytes: int


def kinds(name: str | None = None, *, unused_days: float = 0.0) -> list[Kind]:
    """What the cache holds, kind by kind; of one kind, or only what was not used for some days, if asked.

    Raises:
        ConfigError: there is no such kind.
    """
    chosen = {kind: _unused(kind, unused_days) for kind in _named(name)}
    return [Kind(kind, KINDS[kind], len(found), sum(e.num_bytes for e in found)) for kind, found in chosen.items()]


def clear(name: str | None = None, *, unused_days: float = 0.0) -> tuple[int, int]:
    """Remove what `kinds` counts, and what writers that were killed left behind; returns entries and bytes removed.

    Raises:
        ConfigError: there is no such kind.
    """
    removed, freed = 0, 0
    for kind in _named(name):
        for entry in _unused(kind, unused_days, unfinished=True):
            entry.remove()
            removed, freed = removed + 1, freed + entry.num_bytes
    return removed, freed


def _named(name: str | None) -> list[str]:
    if name is not None and name not in KINDS:
        raise ConfigError(f"the cache has no kind {name!r}{suggest(name, KINDS)}")
    return [name] if name is not None else sorted(KINDS)


def _unused(kind: str, days: float, *, unfinished: bool = False) -> list[Entry]:
    latest = time.time() - 86_400 * days
    return [entry for entry in entries_of(cache_folder(kind), unfinished=unfinished) if entry.used <= latest]


def key_of(*parts: object) -> str:
    """40 hexadecimal digits that stand for `parts` (anything JSON can hold)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:40]


def stamp(path: Path) -> tuple[str, int, int]:
    """What tells one state of a file from another without reading it: absolute path, size in bytes, mtime in ns."""
    status = path.stat()
    return (str(path.resolve()), status.st_size, status.st_mtime_ns)


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A new file name beside `target`, renamed to it when the block ends well and removed when it does not."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        beside.replace(target)
    except OSError as error:
        beside.unlink(missing_ok=True)
        if error.errno is None or error.filename not in (None, str(beside)):
            raise
        message = (
            f"{target} cannot be written ({error.strerror}); free some space or set REGRAFT_CACHE to another folder"
        )
        raise DataError(message) from error
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def file_sha256(path: Path) -> str:
    """sha256 of the bytes of a file, read once for each size and mtime."""
    known = cache_folder("hashes") / key_of("sha256", stamp(path))
    if known.exists():
        return known.read_text()
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(CHUNK):
            digest.update(block)
    with written_whole(known) as beside:
        beside.write_text(digest.hexdigest())
    return digest.hexdigest()


def files_sha256(files: list[Path], root: Path) -> str:
    """sha256 over the names relative to `root` and the contents of many files, kept as one entry for all of them."""
    known = cache_folder("hashes") / key_of("files", [stamp(path) for path in files], str(root.resolve()))
    if known.exists():
        return known.read_text()
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(root).as_posix().encode("utf-8", "surrogateescape") + b"\0")
        with path.open("rb") as stream:
            while block := stream.read(CHUNK):
                digest.update(block)
        digest.update(b"\0")
    with written_whole(known) as beside:
        beside.write_text(digest.hexdigest())
    return digest.hexdigest()
