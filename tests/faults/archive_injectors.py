"""Hostile archives and images, each a file of a few kilobytes that asks for more than it should."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from faults.bad_data import png_claiming
from PIL import Image

GOOD = b"text,label\n" + b"".join(
    b"some words of the row %d and more,%s\n" % (k, b"ab"[k % 2 : k % 2 + 1]) for k in range(60)
)


def zipped(path: Path, entries: dict[str, bytes], *, change: Callable[[zipfile.ZipInfo], None] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if change is not None:
                change(info)
            archive.writestr(info, content)
    return path


def tarred(path: Path, entries: list[tuple[tarfile.TarInfo, bytes]], *, form: int = tarfile.GNU_FORMAT) -> Path:
    mode = "w:gz" if path.name.endswith(("gz", "tgz")) else "w"
    with tarfile.open(path, mode, format=form) as archive:
        for info, content in entries:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def patched(path: Path, old: bytes, new: bytes, *, count: int = -1) -> Path:
    path.write_bytes(path.read_bytes().replace(old, new, count))
    return path


def overlapping(path: Path) -> Path:
    """Two names for the bytes of one entry, as in the better zip bombs."""
    zipped(path, {"a.csv": GOOD, "b.csv": GOOD})
    raw = bytearray(path.read_bytes())
    second = raw.find(b"PK\1\2", raw.find(b"PK\1\2") + 4)
    raw[second + 42 : second + 46] = struct.pack("<I", 10)
    path.write_bytes(raw)
    return path


def many_entries(path: Path) -> Path:
    """A directory that says it holds 60,000 entries and repeats one record for each of them."""
    zipped(path, {"a.csv": GOOD})
    raw = path.read_bytes()
    at = raw.find(b"PK\1\2")
    end = raw.find(b"PK\5\6")
    record = raw[at:end]
    count = 60_000
    tail = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(record) * count, at, 0)
    path.write_bytes(raw[:at] + record * count + tail)
    return path


def huge_pax(path: Path) -> Path:
    """A pax header that says it is 4 GB long."""
    body = member("x", tarfile.XHDTYPE)
    body.size = 4 << 30
    path.write_bytes(body.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    return path


def sparse(path: Path) -> Path:
    info = member("a.csv", tarfile.GNUTYPE_SPARSE)
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    return path


def longer_than_said(path: Path) -> Path:
    """A ZIP entry that inflates to far more than its header says."""
    zipped(path, {"a.csv": bytes(1_000_000)})
    raw = bytearray(path.read_bytes())
    raw[raw.find(b"PK\1\2") + 24 : raw.find(b"PK\1\2") + 28] = struct.pack("<I", 100)
    path.write_bytes(raw)
    return path


ARCHIVES: dict[str, Callable[[Path], Path]] = {
    "zip absolute": lambda d: zipped(d / "x.zip", {"/tmp/canary.csv": GOOD}),
    "zip parent": lambda d: zipped(d / "x.zip", {"../canary.csv": GOOD}),
    "zip parent inside": lambda d: zipped(d / "x.zip", {"a/../../canary.csv": GOOD}),
    "zip backslash": lambda d: zipped(d / "x.zip", {"..\\canary.csv": GOOD}),
    "zip drive": lambda d: zipped(d / "x.zip", {"C:canary.csv": GOOD}),
    "zip control character": lambda d: zipped(d / "x.zip", {"a\n.csv": GOOD}),
    "zip symlink": lambda d: zipped(
        d / "x.zip", {"link": b"/etc/passwd"}, change=lambda i: setattr(i, "external_attr", 0o120777 << 16)
    ),
    "zip device": lambda d: zipped(
        d / "x.zip", {"dev": b""}, change=lambda i: setattr(i, "external_attr", 0o020777 << 16)
    ),
    "zip encrypted": lambda d: patched(
        zipped(d / "x.zip", {"a.csv": GOOD}), b"PK\1\2\x14\x03\x14\0\0\0", b"PK\1\2\x14\x03\x14\0\1\0"
    ),
    "zip duplicate": lambda d: patched(zipped(d / "x.zip", {"a.csv": GOOD, "b.csv": GOOD}), b"b.csv", b"a.csv"),
    "zip file as folder": lambda d: zipped(d / "x.zip", {"a": GOOD, "a/b.csv": GOOD}),
    "zip bomb": lambda d: zipped(d / "x.zip", {"a.csv": bytes(30_000_000)}),
    "zip longer than said": lambda d: longer_than_said(d / "x.zip"),
    "zip overlap": lambda d: overlapping(d / "x.zip"),
    "zip many": lambda d: many_entries(d / "x.zip"),
    "zip deep": lambda d: zipped(d / "x.zip", {"a/" * 300 + "b.csv": GOOD}),
    "zip long name": lambda d: zipped(d / "x.zip", {"a" * 5000 + ".csv": GOOD}),
    "zip other name inside": lambda d: patched(zipped(d / "x.zip", {"a.csv": GOOD}), b"a.csv", b"../..", count=1),
    "zip cut": lambda d: write(d / "x.zip", zipped(d / "y.zip", {"a.csv": GOOD}).read_bytes()[:-30]),
    "zip checksum": lambda d: flipped(zipped(d / "x.zip", {"a.csv": GOOD}), 60),
    "zip empty": lambda d: zipped(d / "x.zip", {}),
    "zip of nothing": lambda d: write(d / "x.zip", b"no archive at all" * 10),
    "tar absolute": lambda d: tarred(d / "x.tar", [(member("/tmp/canary.csv"), GOOD)]),
    "tar parent": lambda d: tarred(d / "x.tar", [(member("../canary.csv"), GOOD)]),
    "tar long parent": lambda d: tarred(d / "x.tar", [(member("a/" * 60 + "../" * 62 + "canary.csv"), GOOD)]),
    "tar pax parent": lambda d: tarred(
        d / "x.tar", [(member("a/" * 60 + "../" * 62 + "canary.csv"), GOOD)], form=tarfile.PAX_FORMAT
    ),
    "tar symlink": lambda d: tarred(
        d / "x.tar", [(member("l", tarfile.SYMTYPE, "/tmp"), b""), (member("l/canary.csv"), GOOD)]
    ),
    "tar hard link": lambda d: tarred(d / "x.tar", [(member("l", tarfile.LNKTYPE, "/etc/passwd"), b"")]),
    "tar device": lambda d: tarred(d / "x.tar", [(member("d", tarfile.CHRTYPE), b"")]),
    "tar pipe": lambda d: tarred(d / "x.tar", [(member("d", tarfile.FIFOTYPE), b"")]),
    "tar sparse": lambda d: sparse(d / "x.tar"),
    "tar huge header": lambda d: huge_pax(d / "x.tar"),
    "tar duplicate": lambda d: tarred(d / "x.tar", [(member("a.csv"), GOOD), (member("a.csv"), GOOD)]),
    "tar cut": lambda d: write(d / "x.tar", tarred(d / "y.tar", [(member("a.csv"), GOOD)]).read_bytes()[:900]),
    "tar checksum": lambda d: flipped(tarred(d / "x.tar", [(member("a.csv"), GOOD)]), 3),
    "tar.gz bomb": lambda d: tarred(d / "x.tar.gz", [(member("a.csv"), bytes(30_000_000))]),
    "tgz of zeros": lambda d: write(d / "x.tgz", gzip.compress(bytes(30_000_000))),
    "tgz header bomb": lambda d: write(
        d / "x.tgz", gzip.compress(b"".join(member(f"d{k}", tarfile.DIRTYPE).tobuf() for k in range(6_000)))
    ),
    "tgz cut": lambda d: write(d / "x.tgz", gzip.compress(GOOD * 20)[:200]),
    "tgz of nothing": lambda d: write(d / "x.tgz", b"\x1f\x8b" + b"rubbish" * 100),
}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def flipped(path: Path, at: int) -> Path:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0x40
    return write(path, bytes(raw))


# ---- images


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=form, **options)
    return stream.getvalue()


def bmp_claiming(width: int, height: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 58, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        + b"\0" * 4
    )


def gif_of_frames(count: int) -> bytes:
    """Frames of one pixel, thirty bytes each."""
    head = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"\x21\xf9\x04\0\0\0\0\0" + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return head + frame * count + b"\x3b"


def tiff_loop() -> bytes:
    """A TIFF whose directories lead back to the first."""
    raw = bytearray(saved(Image.new("L", (8, 8)), "TIFF"))
    (at,) = struct.unpack_from("<I", raw, 4)
    (count,) = struct.unpack_from("<H", raw, at)
    raw[at + 2 + 12 * count : at + 6 + 12 * count] = struct.pack("<I", at)
    return bytes(raw[:-3])


def tiff_claiming(side: int) -> bytes:
    raw = bytearray(saved(Image.new("L", (8, 8)), "TIFF"))
    (at,) = struct.unpack_from("<I", raw, 4)
    for k in range(struct.unpack_from("<H", raw, at)[0]):
        place = at + 2 + 12 * k
        if struct.unpack_from("<H", raw, place)[0] in (256, 257):
            raw[place + 2 : place + 12] = struct.pack("<HII", 4, 1, side)
    return bytes(raw)


def webp_claiming(side: int) -> bytes:
    size = (side - 1).to_bytes(3, "little") * 2
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG that repeats its last scan, each a pass over all pixels."""
    raw = saved(Image.fromarray(np.full((2000, 2000, 3), 90, np.uint8)), "JPEG", progressive=True)
    last = raw.rfind(b"\xff\xda")
    return raw[:last] + raw[last:-2] * count + raw[-2:]


def png_text_bomb() -> bytes:
    """A PNG with a compressed comment of 80 MB."""
    raw = saved(Image.new("L", (8, 8)), "PNG")
    content = b"zTXtcomment\0\0" + zlib.compress(bytes(80_000_000), 1)
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return raw[:33] + chunk + raw[33:]


IMAGES: dict[str, Callable[[], bytes]] = {
    "png of 30,000 pixels": lambda: png_claiming(30_000, 30_000),
    "png that is within the limit of Pillow": lambda: png_claiming(9_400, 9_400, body=bytes(9_401 * 9_400)),
    "png just above the bytes it has": lambda: png_claiming(5_000, 5_000, body=bytes(5_001 * 5_000)),
    "png of one row": lambda: png_claiming(2_000_000, 1, body=bytes(2_000_001)),
    "png of one column": lambda: png_claiming(1, 2_000_000, body=bytes(4_000_000)),
    "png without pixels": lambda: png_claiming(4_000, 4_000, body=b""),
    "png with a comment": png_text_bomb,
    "bmp": lambda: bmp_claiming(60_000, 60_000),
    "bmp of negative height": lambda: bmp_claiming(60_000, -60_000),
    "gif of 60,000 pixels": lambda: b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0, 0, 0) + b"\x2c" + bytes(20),
    "gif of 200,000 frames": lambda: gif_of_frames(200_000),
    "tiff of 100,000 pixels": lambda: tiff_claiming(100_000),
    "tiff of 60,000 pixels in one strip": lambda: tiff_claiming(60_000),
    "tiff that loops": tiff_loop,
    "webp of 16,000 pixels": lambda: webp_claiming(16_000),
    "ppm": lambda: b"P6 40000 40000 255\n" + bytes(100),
    "plain ppm": lambda: b"P3 6000 6000 255\n" + b"1 " * 100,
    "jpeg of 3,000 scans": lambda: jpeg_of_scans(3_000),
    "jpeg of 65,000 pixels": lambda: jpeg_claiming(65_000),
    "truncated jpeg": lambda: saved(Image.new("RGB", (500, 500), "red"), "JPEG")[:700],
    "eps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
    "pdf": lambda: b"%PDF-1.4\n1 0 obj\n",
    "wmf": lambda: b"\xd7\xcd\xc6\x9a" + bytes(100),
    "svg": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "jpeg 2000": lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
    "icon": lambda: b"\0\0\1\0\1\0" + bytes(100),
    "fits": lambda: b"SIMPLE  =                    T" + bytes(3000),
    "pickle": lambda: b"\x80\x04cos\nsystem\n(S'touch canary'\ntR.",
    "nothing": lambda: b"",
}


def jpeg_claiming(side: int) -> bytes:
    raw = bytearray(saved(Image.new("RGB", (8, 8)), "JPEG"))
    at = raw.find(b"\xff\xc0") + 5
    raw[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(raw)
