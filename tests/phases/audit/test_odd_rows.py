"""Odd images and odd texts: each kind is named, alone, and a cleaned copy has none of it left."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regraft.config.data import DataSpec
from regraft.data.read import load
from regraft.phases.audit.fix import fix
from regraft.phases.audit.image_scan import as_rgb, scan
from regraft.phases.audit.run import audit
from regraft.phases.findings import AuditReport


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))


def rows_of(report: AuditReport, kind: str, split: str = "train") -> tuple:
    return tuple(row for f in report.findings if f.kind == kind and f.split == split for row in f.rows)


def photo(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((64, 64), Image.Resampling.BICUBIC)


def bomb(side: int) -> bytes:
    """A PNG of some hundred bytes that claims to be `side` pixels wide and high."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def image_folder(root: Path) -> Path:
    for split in ("train", "test"):
        for label in ("x", "y"):
            (root / split / label).mkdir(parents=True)
            for k in range(4):
                photo(1000 * len(split) + 10 * ord(label) + k).save(root / split / label / f"{k}.png")
    return root / "train" / "x"


ODD = {
    "decompression-bomb": ["bomb.png"],
    "deep-image": ["deep.png"],
    "palette-image": ["frames.gif", "palette.png"],
    "transparent-image": ["clear.png"],
    "grey-among-colour": ["deep.png", "grey.png"],
    "tiny-image": ["one.png"],
    "odd-file-name": ["a photo (1).png"],
}


def test_each_odd_image_is_named_and_only_it(tmp_path: Path):
    here = image_folder(tmp_path / "d")
    (here / "bomb.png").write_bytes(bomb(20_000))
    Image.fromarray(np.asarray(photo(1).convert("L")).astype(np.uint16) * 257).save(here / "deep.png")
    photo(2).quantize(32).save(here / "palette.png")
    photo(3).save(here / "frames.gif", save_all=True, append_images=[photo(4)])
    clear = photo(5).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(here / "clear.png")
    photo(6).convert("L").save(here / "grey.png")
    Image.new("RGB", (1, 1), "red").save(here / "one.png")
    photo(7).save(here / "a photo (1).png")
    opaque = photo(8).convert("RGBA")
    opaque.save(here / "opaque.png")  # has an alpha channel, but nothing shows through
    data = load(DataSpec(path=str(tmp_path / "d")), keep_bad=True)
    report = audit(data)
    for kind, names in ODD.items():
        assert sorted(rows_of(report, kind)) == [f"train/x/{name}" for name in names], kind
    assert [f.kind for f in report.errors] == ["decompression-bomb"]
    fix(data, report, tmp_path / "clean")
    again = audit(load(DataSpec(path=str(tmp_path / "clean"))))
    assert not {f.kind for f in again.findings} & (set(ODD) - {"odd-file-name"})
    assert not (tmp_path / "clean" / "train" / "x" / "bomb.png").exists()
    with Image.open(tmp_path / "clean" / "train" / "x" / "deep.png") as image:
        assert (image.mode, image.size) == ("RGB", (64, 64))
        np.testing.assert_allclose(np.asarray(image)[..., 0], np.asarray(photo(1).convert("L")), atol=1)


def test_a_bomb_is_told_from_its_header_without_decoding_it():
    files = [bomb(20_000), bomb(9_500), bomb(60)]
    assert [one.bad == "a decompression bomb" for one in scan(3, files.__getitem__)] == [True, True, False]


def test_transparent_pixels_are_shown_on_white():
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    shown = np.asarray(as_rgb(image))
    assert shown[0, 0].tolist() == [10, 20, 30]
    assert (shown[1:] == 255).all()


def test_rows_in_another_encoding_and_very_long_ones_are_named_by_number(tmp_path: Path):
    rng = np.random.default_rng(0)
    lines = [f"a plain text number {k} with {rng.integers(1e6)},{'ab'[k % 2]}".encode() for k in range(60)]
    lines[17] = "un café très chaud,a".encode("cp1252")
    lines[18] = "un café très froid,b".encode()
    lines[31] = ("very long words " * 300).encode() + b",a"
    lines[32] = ("quite long words " * 100).encode() + b",a"  # under 512 words
    lines[40] = "a broken \ufffd character here,b".encode()
    (tmp_path / "train.csv").write_bytes(b"text,label\n" + b"\n".join(lines) + b"\n")
    data = load(
        DataSpec(path=str(tmp_path / "train.csv"), text=("text",), label=("label",), modality="text"),
        keep_bad=True,
    )
    report = audit(data, suspects=False)
    assert sorted(rows_of(report, "encoding")) == [17, 40]
    assert rows_of(report, "very-long-text") == (31,)
    assert rows_of(report, "mojibake") == ()


def test_the_messy_images_give_their_planted_files(shared_data):
    folder = shared_data("messy_images_dev")
    truth = json.loads((folder / "ground_truth.json").read_text())["defects"]
    report = audit(load(DataSpec(path=str(folder / "data")), keep_bad=True))
    named: dict[str, set] = {}
    for finding in report.findings:
        named.setdefault(finding.kind, set()).update(finding.rows)

    def files(kind: str) -> set[str]:
        return {entry if isinstance(entry, str) else entry.get("file") or entry["dir"] for entry in truth[kind]}

    expected = {
        "truncated_jpeg": "unreadable",
        "zero_byte_file": "unreadable",
        "not_an_image": "unreadable",
        "cmyk_jpeg": "cmyk-image",
        "png_16bit_grey": "deep-image",
        "exif_rotated": "rotated-image",
        "wrong_extension": "wrong-extension",
        "transparent_png": "transparent-image",
        "palette_gif": "palette-image",
        "blank_image": "blank-image",
        "one_pixel_image": "tiny-image",
        "stray_file": "stray-file",
        "exact_dup_across_splits": "exact-duplicate-across-splits",
        "near_dup_across_splits": "near-duplicate-across-splits",
    }
    for planted, kind in expected.items():
        assert planted in truth
        assert files(planted) <= named[kind], planted
    broken = set().union(*(files(planted) for planted, kind in expected.items() if kind == "unreadable"))
    assert named["unreadable"] == broken
    assert report.errors
