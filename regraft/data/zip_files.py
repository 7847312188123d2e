"""The entries of a ZIP file, read by a small parser that believes nothing a header says until it has been checked.

APPNOTE.TXT 6.3.10, sections 4.3.7 to 4.3.16 and 4.5.3; only entries that are stored or deflated, on one disk, not encrypted.
"""

from __future__ import annotations

import itertools
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from regraft.data.archives import CHUNK, BadArchive, Budget, Member, safe_name

END, END_64, LOCATOR_64, CENTRAL, LOCAL = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", b"PK\3\4"
FULL_16, FULL_32 = 0xFFFF, 0xFFFFFFFF  # stands for "see the ZIP64 fields"
STORED, DEFLATED = 0, 8
ENCRYPTED = 0x0001 | 0x0040 | 0x2000
LONGEST_COMMENT = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One record of the central directory."""

    name: bytes  # as it is written
    member: Member
    method: int
    crc: int
    packed: int
    offset: int  # of its local header


def zip_members(archive: Path, budget: Budget) -> Iterator[tuple[Member, Iterator[bytes]]]:
    """(entry, its content in pieces) of each file and folder. BadArchive with the first thing that is wrong."""
    with archive.open("rb") as stream:
        entries = read_directory(stream, archive, budget)
        _check_overlaps(entries, archive)
        for entry in entries:
            yield entry.member, _content(stream, entry, archive, budget)


def read_directory(stream: BinaryIO, archive: Path, budget: Budget) -> list[Entry]:
    """The central directory, every entry checked and counted before anything is extracted."""
    start, size, count = _end(stream, archive)
    if count > budget.caps.entries:
        raise BadArchive(f"{archive} holds more than {budget.caps.entries:,} entries; extract it yourself")
    if start + size > budget.packed:
        raise _damaged(archive, "its directory lies outside of it")
    stream.seek(start)
    entries: list[Entry] = []
    left = size
    for _ in range(count):
        fixed = stream.read(46)
        if len(fixed) < 46 or fixed[:4] != CENTRAL:
            raise _damaged(archive, "its directory is cut off")
        lengths = struct.unpack_from("<HHH", fixed, 28)
        left -= 46 + sum(lengths)
        if left < 0:
            raise _damaged(archive, "its directory is cut off")
        name, extra, _ = (stream.read(length) for length in lengths)
        if len(name) < lengths[0] or len(extra) < lengths[1]:
            raise _damaged(archive, "its directory is cut off")
        entry = _entry(fixed, name, extra, archive, budget)
        budget.entry(entry.member)
        budget.total += entry.member.size  # all sizes together are within the limits before the first byte is extracted
        entries.append(entry)
    budget.total = 0
    return entries


def _end(stream: BinaryIO, archive: Path) -> tuple[int, int, int]:
    """(offset, bytes, entries) of the central directory."""
    stream.seek(0, 2)
    length = stream.tell()
    stream.seek(max(0, length - LONGEST_COMMENT - 22))
    base, tail = max(0, length - LONGEST_COMMENT - 22), stream.read()
    at = tail.rfind(END)
    if at < 0 or len(tail) < at + 22:
        raise _damaged(archive, "it has no end record, so it is no ZIP file or is cut off")
    disk, first, here, count, size, start = struct.unpack_from("<HHHHII", tail, at + 4)
    if FULL_16 in (here, count) or FULL_32 in (size, start):
        stream.seek(max(0, base + at - 20))
        locator = stream.read(20)
        if len(locator) == 20 and locator[:4] == LOCATOR_64:
            stream.seek(min(struct.unpack_from("<Q", locator, 8)[0], length))
            record = stream.read(56)
            if len(record) < 56 or record[:4] != END_64:
                raise _damaged(archive, "its ZIP64 end record is missing")
            disk, first, here, count, size, start = struct.unpack_from("<IIQQQQ", record, 16)
    if disk or first or here != count:
        raise BadArchive(f"{archive} is one part of several; join them first")
    if start > length or size > length:
        raise _damaged(archive, "its directory lies outside of it")
    return start, size, count


def _entry(fixed: bytes, name: bytes, extra: bytes, archive: Path, budget: Budget) -> Entry:
    """One record of the directory, checked."""
    made, _, flags, method, _, _, crc, packed, size = struct.unpack_from("<HHHHHHIII", fixed, 4)
    attributes, offset = struct.unpack_from("<II", fixed, 38)
    size, packed, offset = _wide(extra, (size, packed, offset), archive)
    text = _decoded(name, utf8=bool(flags & 0x800))
    safe = safe_name(text, archive, budget.caps)
    if flags & ENCRYPTED:
        raise BadArchive(f"{archive}: {safe!r} is encrypted; extract it yourself and give the folder")
    kind = stat.S_IFMT(attributes >> 16) if made >> 8 in (3, 19) else 0  # made on Unix or macOS
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a link" if kind == stat.S_IFLNK else "a device or the like"
        raise BadArchive(f"{archive}: {safe!r} is {what}; only plain files and folders are extracted, pack it again")
    folder = text.endswith("/") or kind == stat.S_IFDIR
    if method not in (STORED, DEFLATED):
        raise BadArchive(
            f"{archive}: {safe!r} is packed by method {method}; only stored and deflated entries are read, pack it again"
        )
    if method == STORED and packed != size:
        raise _damaged(archive, f"{safe!r} is stored in {packed:,} bytes but has {size:,}")
    if folder and size:
        raise _damaged(archive, f"the folder {safe!r} has content")
    return Entry(
        name=name,
        member=Member(name=safe, size=size, is_folder=folder),
        method=method,
        crc=crc,
        packed=packed,
        offset=offset,
    )


def _wide(extra: bytes, given: tuple[int, int, int], archive: Path) -> tuple[int, int, int]:
    """(size, packed size, offset), those that are full taken from the ZIP64 field."""
    if FULL_32 not in given:
        return given
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, at)
        if tag == 1:
            body, values = extra[at + 4 : at + 4 + length], list(given)
            place = 0
            for index, value in enumerate(given):
                if value == FULL_32:
                    if place + 8 > len(body):
                        break
                    (values[index],) = struct.unpack_from("<Q", body, place)
                    place += 8
            return values[0], values[1], values[2]
        at += 4 + length
    raise _damaged(archive, "an entry has no ZIP64 field although it needs one")


def _decoded(name: bytes, *, utf8: bool) -> str:
    """A name as text: UTF-8 where it is marked as such or is such, else code page 437."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return name.decode("utf-8", errors="replace") if utf8 else name.decode("cp437")


def _check_overlaps(entries: list[Entry], archive: Path) -> None:
    """BadArchive where two entries share bytes, which is how a small file holds many copies of a large one."""
    spans = sorted((entry.offset, entry.offset + 30 + len(entry.name) + entry.packed) for entry in entries)
    for (_, end), (start, _) in itertools.pairwise(spans):
        if start < end:
            raise BadArchive(f"{archive} holds entries that overlap, like a decompression bomb; do not use this file")


def _content(stream: BinaryIO, entry: Entry, archive: Path, budget: Budget) -> Iterator[bytes]:
    """The content of an entry in pieces, no more of it than its header says, its checksum compared at the end."""
    stream.seek(min(entry.offset, budget.packed))
    fixed = stream.read(30)
    if len(fixed) < 30 or fixed[:4] != LOCAL:
        raise _damaged(archive, f"{entry.member.name!r} is not where its directory says")
    length, extra = struct.unpack_from("<HH", fixed, 26)
    if stream.read(length) != entry.name:
        raise _damaged(archive, f"{entry.member.name!r} has another name in its own header")
    stream.seek(extra, 1)
    crc, written = 0, 0
    for piece in _inflated(stream, entry, archive):
        written += len(piece)
        if written > entry.member.size:
            raise BadArchive(f"{archive}: {entry.member.name!r} is longer than its header says; do not use this file")
        budget.take(len(piece))
        crc = zlib.crc32(piece, crc)
        yield piece
    if written != entry.member.size or crc != entry.crc:
        raise _damaged(archive, f"{entry.member.name!r} does not have the checksum it should have")


def _inflated(stream: BinaryIO, entry: Entry, archive: Path) -> Iterator[bytes]:
    """The unpacked bytes of the entry whose packed ones begin here, at most CHUNK at a time."""
    unpack = None if entry.method == STORED else zlib.decompressobj(-15)
    left = entry.packed
    while left:
        raw = stream.read(min(left, CHUNK))
        if not raw:
            raise _damaged(archive, f"{entry.member.name!r} is cut off")
        left -= len(raw)
        if unpack is None:
            yield raw
            continue
        try:
            while raw and not unpack.eof:
                yield unpack.decompress(raw, CHUNK)
                raw = unpack.unconsumed_tail
        except zlib.error as error:
            raise _damaged(archive, f"{entry.member.name!r} cannot be inflated ({error})") from None
    if unpack is not None:
        tail = unpack.flush()
        if not unpack.eof:
            raise _damaged(archive, f"{entry.member.name!r} is cut off")
        if tail:
            yield tail


def _damaged(archive: Path, why: str) -> BadArchive:
    return BadArchive(f"{archive} is damaged: {why}; fetch it again")
