"""Data that comes as one .zip, .tar, .tar.gz or .tgz file, unpacked into the cache by an extractor of our own.

An archive is read as if a stranger had packed it: names, kinds and sizes are checked before a byte is written, every file is
made anew in a folder of its own, and a folder is there only when all of it was extracted. The limits are in `Caps`.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from regraft.data.cache import cache_folder, file_sha256, key_of
from regraft.errors import DataError

FORMAT = 1  # of the extracted folders; raise it when the same archive would be extracted differently
SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
CHUNK = 1 << 18
KIND = "archives"  # of the cache


@dataclass(frozen=True, kw_only=True)
class Caps:
    """What an archive may hold at most. The defaults hold for every archive that regraft opens."""

    entries: int = 200_000
    bytes_per_entry: int = 64  # of the archive, beyond the first thousand entries; less is a bomb of headers
    total: int = 32 << 30  # bytes, extracted
    file: int = 8 << 30  # bytes of one file, extracted
    ratio: int = 100  # extracted bytes for each byte of the archive, beyond the first megabyte
    free: int = 1 << 20
    depth: int = 16  # folders in one another
    name: int = 255  # bytes of one part of a path
    path: int = 1000  # bytes of a whole path


CAPS = Caps()


class BadArchive(DataError):
    """An archive that is not extracted."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file or folder of an archive, as its headers describe it."""

    name: str  # checked: relative, without `..`, with single slashes
    size: int
    is_folder: bool = False


def is_archive(path: Path) -> bool:
    """Does the name end like that of an archive?"""
    return path.name.lower().endswith(SUFFIXES)


def extracted(archive: Path, *, caps: Caps = CAPS) -> Path:
    """The folder in the cache with the content of an archive, extracted unless it is there; named like the archive.

    Raises:
        BadArchive: damaged, encrypted, beyond a limit, or with an entry that is no plain file or folder inside it.
    """
    target = cache_folder(KIND) / key_of("archive", FORMAT, file_sha256(archive))
    stem = re.sub(r"\.(zip|tar|tar\.gz|tgz)$", "", archive.name, flags=re.IGNORECASE) or "data"
    if not target.is_dir():
        waiting = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            _extract(archive, waiting / "content", caps)
            try:
                waiting.rename(target)
            except OSError:  # another process was quicker
                if not target.is_dir():
                    raise
        except OSError as error:
            raise BadArchive(
                f"{archive} cannot be extracted to {target.parent} ({error.strerror or error}); make room there, or set "
                "REGRAFT_CACHE to another folder"
            ) from error
        finally:
            shutil.rmtree(waiting, ignore_errors=True)
    return _inner(target / "content", stem)


def extracted_root(folder: Path) -> Path | None:
    """The folder an archive was extracted to that `folder` lies in; None for any other folder."""
    if KIND not in folder.parts:
        return None
    base = cache_folder(KIND).resolve()
    here = folder.resolve()
    return base / here.relative_to(base).parts[0] if here.is_relative_to(base) and here != base else None


def safe_name(name: str, archive: Path, caps: Caps = CAPS) -> str:
    """A name of an entry as a relative path. BadArchive where it would lead out of the folder, or beyond a limit."""
    shown = repr(name if len(name) <= 80 else name[:77] + "...")
    if name.startswith("/") or "\\" in name or re.match(r"[A-Za-z]:", name):
        raise BadArchive(
            f"{archive} holds {shown}, which is no relative path; pack it again from inside the data folder"
        )
    if any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in name):
        raise BadArchive(f"{archive} holds {shown}, a name with control characters; rename that file")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise BadArchive(f"{archive} holds {shown}, which leads out of the archive; do not use this file")
    longest = max((len(part.encode()) for part in parts), default=0)
    if len(parts) > caps.depth + 1 or longest > caps.name or len(name.encode()) > caps.path:
        raise BadArchive(
            f"{archive} holds {shown}, a path that is too long or too deep (at most {caps.depth} folders, {caps.name} bytes a "
            f"name and {caps.path} in all); rename that file"
        )
    return "/".join(parts)


def is_clutter(name: str) -> bool:
    """Is it one of the files that macOS puts beside the data?"""
    return any(part in ("__MACOSX", ".DS_Store") or part.startswith("._") for part in name.split("/"))


class Budget:
    """Counts entries and bytes of one archive against its limits."""

    def __init__(self, archive: Path, packed: int, caps: Caps) -> None:
        self.archive, self.packed, self.caps = archive, packed, caps
        self.entries = self.total = 0
        self.names: set[str] = set()

    def entry(self, member: Member) -> None:
        """Count an entry by what its header says, before anything of it is read."""
        self.entries += 1
        most = min(self.caps.entries, 1000 + self.packed // self.caps.bytes_per_entry)
        if self.entries > most:
            raise BadArchive(f"{self.archive} holds more than {most:,} entries; extract it yourself if you trust it")
        if not member.is_folder and member.name in self.names:
            raise BadArchive(f"{self.archive} holds {member.name!r} twice; pack it again")
        self.names.add(member.name)
        if member.size > self.caps.file:
            raise BadArchive(
                f"{self.archive}: {member.name!r} has {member.size:,} bytes, more than {self.caps.file:,}; extract it yourself"
            )
        self._check(self.total + member.size)

    def take(self, count: int) -> None:
        """Count bytes that were really extracted."""
        self.total += count
        self._check(self.total)

    def _check(self, total: int) -> None:
        if total > self.caps.free + self.caps.ratio * self.packed:
            raise BadArchive(
                f"{self.archive} would grow to more than {self.caps.ratio} times its size, like a decompression bomb; "
                "extract it yourself if you trust it"
            )
        if total > self.caps.total:
            raise BadArchive(
                f"{self.archive} holds more than {self.caps.total:,} bytes when extracted; extract it yourself"
            )


def _extract(archive: Path, folder: Path, caps: Caps) -> None:
    """Write all files of an archive into a new folder."""
    from regraft.data.tar_files import tar_members
    from regraft.data.zip_files import zip_members

    folder.mkdir()
    budget = Budget(archive, archive.stat().st_size, caps)
    members = zip_members if archive.name.lower().endswith(".zip") else tar_members
    files = 0
    for member, content in members(archive, budget):
        if is_clutter(member.name) or not member.name or member.is_folder:  # a folder is made with the first file in it
            for _ in content:
                continue
            continue
        target = folder / member.name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise BadArchive(
                f"{archive} holds {member.name!r} inside of something that is a file; pack it again"
            ) from None
        _write(target, member, content, archive)
        files += 1
    if not files:
        raise BadArchive(f"{archive} holds no files; pack it again")


def _write(target: Path, member: Member, content: Iterator[bytes], archive: Path) -> None:
    """One new file; never one that is there, never through a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        handle = os.open(target, flags, 0o644)
    except FileExistsError:
        raise BadArchive(f"{archive} holds {member.name!r} twice; pack it again") from None
    written = 0
    with os.fdopen(handle, "wb") as stream:
        for piece in content:
            stream.write(piece)
            written += len(piece)
    if written != member.size:
        raise BadArchive(
            f"{archive}: {member.name!r} has {written:,} bytes instead of {member.size:,}; the archive is damaged, fetch it "
            "again"
        )


def _inner(folder: Path, stem: str) -> Path:
    """The folder of the data: `folder`, or the only one in it where the archive wraps everything in a folder of its own."""
    from regraft.data.files import split_of

    while True:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        if len(entries) != 1 or not entries[0].is_dir() or split_of(entries[0].name) or entries[0].name == "data":
            break
        if not any(inner.is_dir() or inner.suffix for inner in entries[0].iterdir()):
            break
        folder = entries[0]
    return folder
