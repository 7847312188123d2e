"""The entries of a tar file, gzipped or not, read in one pass by a small parser that believes no header unchecked.

POSIX.1-2001 ustar and pax headers and GNU long names; links, devices and sparse files are refused.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from regraft.data.archives import CHUNK, BadArchive, Budget, Member, safe_name

BLOCK = 512
LONGEST_HEADER = 1 << 16  # bytes of a pax header or of a GNU long name
MOST_HEADERS = 16  # of them in a row
REFUSED = {
    b"1": "a hard link", b"2": "a link", b"3": "a device", b"4": "a device", b"6": "a pipe", b"K": "a link",
    b"S": "a sparse file",
}  # fmt: skip


def tar_members(archive: Path, budget: Budget) -> Iterator[tuple[Member, Iterator[bytes]]]:
    """(entry, its content in pieces) of each file and folder, which must be read before the next one is asked for."""
    with archive.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = _Counted(cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else raw, archive, budget)
        names: dict[str, bytes] = {}
        headers = 0
        while (block := stream.exactly(BLOCK, end=True)) and any(block):
            size, kind = _header(block, archive), block[156:157]
            if kind in (b"x", b"g", b"L"):
                headers += 1
                if size > LONGEST_HEADER or headers > MOST_HEADERS:
                    raise BadArchive(f"{archive} has a header of {size:,} bytes; pack it again")
                body = stream.padded(size)
                found = (
                    {"path": body.rstrip(b"\0")} if kind == b"L" else pax_records(body, archive) if kind == b"x" else {}
                )
                names |= found
                continue
            member = _member(block, size, names, archive, budget)
            names, headers = {}, 0
            budget.entry(member)
            yield member, _content(stream, member, archive)


class _Counted:
    """A stream that gives exactly what is asked for, and counts what it gave."""

    def __init__(self, stream: BinaryIO, archive: Path, budget: Budget) -> None:
        self.stream, self.archive, self.budget = stream, archive, budget

    def exactly(self, count: int, *, end: bool = False) -> bytes:
        """`count` bytes; BadArchive where they are not there, b"" at the `end` of the stream if that is allowed."""
        try:
            data = self.stream.read(count)
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(self.archive, str(error)) from None
        self.budget.take(len(data))
        if len(data) < count and not (end and not data):
            raise _damaged(self.archive, "it is cut off")
        return data

    def padded(self, count: int) -> bytes:
        """`count` bytes and the rest of their last block, which is thrown away."""
        return self.exactly(count + -count % BLOCK)[:count]


def _header(block: bytes, archive: Path) -> int:
    """The size in a header whose checksum is right."""
    wanted = _number(block[148:156], archive)
    found = sum(block[:148]) + 32 * 8 + sum(block[156:])
    if wanted != found:
        raise _damaged(archive, "a header has the wrong checksum, so it is no tar file or is cut off")
    return _number(block[124:136], archive)


def _number(field: bytes, archive: Path) -> int:
    """A number as octal digits, or in base 256 where the first bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if value >= 1 << 62:
            raise _damaged(archive, "a header holds no size")
        return value
    digits = field.replace(b"\0", b" ").strip()
    if digits and not all(48 <= digit <= 55 for digit in digits):
        raise _damaged(archive, "a header holds no number where there must be one")
    return int(digits or b"0", 8)


def pax_records(body: bytes, archive: Path) -> dict[str, bytes]:
    """The records of a pax header that matter here: path and linkpath; one that sets the size is refused."""
    found: dict[str, bytes] = {}
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + 8)
        digits = body[at:space] if space > at else b""
        length = int(digits) if digits.isdigit() else 0
        if not digits or length <= len(digits) + 1 or at + length > len(body):
            raise _damaged(archive, "a pax header is not written as it must be")
        key, _, value = body[space + 1 : at + length].rstrip(b"\n").partition(b"=")
        if key == b"size" or key.startswith(b"GNU.sparse"):
            raise BadArchive(f"{archive} holds a sparse or very large file; extract it yourself and give the folder")
        if key in (b"path", b"linkpath"):
            found[key.decode()] = value
        at += length
    return found


def _member(block: bytes, size: int, names: dict[str, bytes], archive: Path, budget: Budget) -> Member:
    """The entry of a header."""
    kind = block[156:157]
    prefix = block[345:500].split(b"\0")[0] if block[257:262] == b"ustar" and block[262:264] != b" \0" else b""
    written = block[:100].split(b"\0")[0]
    raw = names.get("path") or (prefix + b"/" + written if prefix else written)
    name = safe_name(raw.decode("utf-8", errors="replace"), archive, budget.caps)
    if kind in REFUSED or "linkpath" in names:
        what = REFUSED.get(kind, "a link")
        raise BadArchive(f"{archive}: {name!r} is {what}; only plain files and folders are extracted, pack it again")
    if kind not in (b"0", b"\0", b"7", b"5"):
        raise BadArchive(f"{archive}: {name!r} is of the kind {kind!r}; only plain files and folders are extracted")
    folder = kind == b"5" or raw.endswith(b"/")
    return Member(name=name, size=0 if folder else size, is_folder=folder)


def _content(stream: _Counted, member: Member, archive: Path) -> Iterator[bytes]:
    """The content of the entry whose header was read last."""
    left = member.size + -member.size % BLOCK
    wanted = member.size
    while left:
        piece = stream.exactly(min(left, CHUNK))
        left -= len(piece)
        if wanted:
            yield piece[:wanted]
            wanted -= min(wanted, len(piece))


def _damaged(archive: Path, why: str) -> BadArchive:
    return BadArchive(f"{archive} is damaged: {why}; fetch it again")
