"""Data sets with planted bad rows: 1 % of them damaged, empty, huge, infinite or of the wrong shape, in every format."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from PIL import Image

from regraft.config.data import DataSpec

ROWS = 400
WORDS = ("river", "stone", "letter", "garden", "window", "market", "winter", "bridge")


@dataclass(frozen=True)
class Planted:
    """Where a data set lies, how it is read, and which of its rows are bad."""

    path: Path
    bad: dict[int, str]  # row of the training file -> kind
    options: dict[str, object] = field(default_factory=dict)

    def spec(self, **more: object) -> DataSpec:
        return DataSpec(**{"path": str(self.path), **self.options, **more})


def text(row: int) -> str:
    drawn = np.random.default_rng(row).integers(0, len(WORDS), 7)
    return f"number {row} of the " + " ".join(WORDS[k] for k in drawn)


def label(row: int) -> str:
    return ("calm", "busy")[row % 2]


def text_rows() -> list[list[str]]:
    return [[text(row), label(row)] for row in range(ROWS)]


def table_rows() -> list[list[object]]:
    drawn = np.random.default_rng(5).normal(size=(ROWS, 2)).round(4)
    return [[a, b, ("north", "south")[k % 3 == 0], ("x", "y")[a > 0]] for k, (a, b) in enumerate(drawn.tolist())]


def delimited(path: Path, header: list[str], rows: list[list[object]], *, mark: str = ",") -> Path:
    """A file with the fields of each row as they are: bytes stay bytes."""
    lines = [mark.join(header).encode()]
    lines += [
        mark.encode().join(cell if isinstance(cell, bytes) else str(cell).encode() for cell in row) for row in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def csv_text(folder: Path, *, mark: str = ",", name: str = "data.csv") -> Planted:
    rows: list[list[object]] = [list(row) for row in text_rows()]
    rows[17] = [rows[17][0]]
    rows[101] = [*rows[101], "a", "b"]
    rows[210][0] = "the caf\u00e9 by the river".encode("cp1252")
    rows[333][0] = "a NUL \0 in the words of the text"
    bad = {17: "field-count", 101: "field-count", 210: "encoding", 333: "nul-byte"}
    return Planted(
        delimited(folder / name, ["text", "label"], rows, mark=mark), bad, {"text": "text", "label": "label"}
    )


def tsv_text(folder: Path) -> Planted:
    return csv_text(folder, mark="\t", name="data.tsv")


def empty_text(folder: Path) -> Planted:
    rows: list[list[object]] = [list(row) for row in text_rows()]
    rows[5][0], rows[200][0], rows[201][1], rows[399][0] = "", "   ", "", "long " * 250_000
    bad = {5: "missing-text", 200: "missing-text", 201: "missing-label", 399: "huge-text"}
    return Planted(delimited(folder / "data.csv", ["text", "label"], rows), bad, {"text": "text", "label": "label"})


def split_folder(folder: Path) -> Planted:
    planted = csv_text(folder, name="train.csv")
    delimited(folder / "test.csv", ["text", "label"], [[text(1000 + row), label(row)] for row in range(60)])
    return Planted(folder, planted.bad, planted.options)


def json_lines(folder: Path) -> Planted:
    lines = [json.dumps({"text": t, "label": kind}).encode() for t, kind in text_rows()]
    lines[3], lines[64], lines[150], lines[398] = (
        b"{broken",
        b"[1, 2]",
        b"[" * 50_000,
        b'{"text": null, "label": "calm"}',
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.jsonl").write_bytes(b"\n".join(lines))
    bad = {3: "unreadable", 64: "unreadable", 150: "unreadable", 398: "missing-text"}
    return Planted(folder / "data.jsonl", bad, {"text": "text", "label": "label"})


def csv_numbers(folder: Path) -> Planted:
    rows = table_rows()
    rows[9][0], rows[50][1], rows[300][0] = "1.2.3", "inf", "-1e999"
    rows[301][3] = ""
    bad = {9: "not-a-number", 50: "not-finite", 300: "not-finite", 301: "missing-label"}
    return Planted(delimited(folder / "data.csv", ["width", "height", "place", "kind"], rows), bad, {"label": "kind"})


def csv_targets(folder: Path) -> Planted:
    rows = [[a, b, round(a - b, 4)] for a, b, *_ in table_rows()]
    rows[2][2], rows[77][2], rows[78][2], rows[399][2] = "unknown", "inf", "", "1e300"
    bad = {2: "bad-target", 77: "bad-target", 78: "missing-label", 399: "bad-target"}
    return Planted(delimited(folder / "data.csv", ["width", "height", "target"], rows), bad, {"label": "target"})


def parquet_numbers(folder: Path) -> Planted:
    rows = table_rows()
    rows[30][0], rows[31][1] = float("inf"), float("-inf")
    rows[32] = [None, None, None, "x"]
    rows[33][3] = None
    names = ["width", "height", "place", "kind"]
    folder.mkdir(parents=True, exist_ok=True)
    columns = {name: [row[at] for row in rows] for at, name in enumerate(names)}
    parquet.write_table(pa.table(columns), folder / "data.parquet")
    bad = {30: "not-finite", 31: "not-finite", 32: "empty-row", 33: "missing-label"}
    return Planted(folder / "data.parquet", bad, {"label": "kind"})


# ---- images


def photo(row: int, *, form: str = "JPEG") -> bytes:
    noise = np.random.default_rng(row).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((40, 40), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, format=form)
    return stream.getvalue()


def png_claiming(width: int, height: int, *, body: bytes = b"\0" * 100) -> bytes:
    """A small PNG whose header claims to be `width` x `height`."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = zlib.compress(body, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def damaged(kind: int, row: int) -> tuple[bytes, str]:
    """(an image file that cannot be used, the kind of problem it is)."""
    return [
        (b"", "unreadable"),
        (photo(row)[:600], "unreadable"),
        (photo(row, form="PNG")[:300], "unreadable"),
        (b"these are words and no image", "unreadable"),
        (png_claiming(30_000, 30_000), "decompression-bomb"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unreadable"),
    ][kind]


def image_cells(rows: int, bad: dict[int, int]) -> tuple[list[bytes], dict[int, str]]:
    cells = [photo(row) for row in range(rows)]
    kinds = {}
    for row, kind in bad.items():
        cells[row], kinds[row] = damaged(kind, row)
    return cells, kinds


def parquet_images(folder: Path) -> Planted:
    cells, bad = image_cells(200, {3: 0, 50: 4})
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": pa.array(cells, pa.binary()), "label": [label(row) for row in range(200)]})
    parquet.write_table(table, folder / "data.parquet")
    return Planted(folder / "data.parquet", bad, {"image": "image", "label": "label"})


def image_folder(folder: Path) -> Planted:
    """120 images in two class folders; a row is the place of its file in sorted order."""
    cells, kinds = image_cells(120, {3: 0, 40: 1, 70: 2, 90: 3, 119: 4})
    names = sorted(f"{label(row)}/{row:03}.jpg" for row in range(120))
    for row, cell in enumerate(cells):
        file = folder / label(row) / f"{row:03}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(cell)
    bad = {names.index(f"{label(row)}/{row:03}.jpg"): kind for row, kind in kinds.items()}
    return Planted(folder, bad)


def image_paths(folder: Path) -> Planted:
    """A table that names its images; one of them is not there and one is a device."""
    cells, _ = image_cells(120, {})
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows: list[list[object]] = []
    for row, cell in enumerate(cells):
        (folder / "pictures" / f"{row}.jpg").write_bytes(cell)
        rows.append([f"pictures/{row}.jpg", label(row)])
    rows[8][0], rows[9][0] = "pictures/gone.jpg", "/dev/zero"
    file = delimited(folder / "data.csv", ["image", "label"], rows)
    return Planted(file, {8: "unreadable", 9: "unreadable"}, {"image": "image", "label": "label"})


def saved_to_disk(folder: Path) -> Planted:
    """A folder as `datasets.Dataset.save_to_disk` writes it."""
    rows = text_rows()
    rows[12][0], rows[13][0] = "", "with a \0 in it"
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"text": [row[0] for row in rows], "label": [row[1] for row in rows]})
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as out,
    ):
        out.write_table(table)
    (folder / "state.json").write_text("{}")
    return Planted(folder, {12: "missing-text", 13: "nul-byte"}, {"text": "text", "label": "label"})


FORMATS: dict[str, Callable[[Path], Planted]] = {
    made.__name__: made
    for made in (
        csv_text, tsv_text, empty_text, split_folder, json_lines, csv_numbers, csv_targets, parquet_numbers,
        parquet_images, image_folder, image_paths, saved_to_disk,
    )
}  # fmt: skip
