"""S1 of data: hostile archives and images are refused in a sentence, at once, in little memory, nothing written elsewhere."""

from __future__ import annotations

import io
import resource
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from faults.archive_injectors import ARCHIVES, GOOD, IMAGES, member, saved, tarred, zipped
from faults.bad_data import image_folder, photo, png_claiming
from faults.lab import forked
from PIL import Image

from regraft.config.data import DataSpec
from regraft.data import archives
from regraft.data.archives import BadArchive, Caps, extracted
from regraft.data.bad_policy import bad_sample_facts
from regraft.data.images import ImagePreprocessor, converted
from regraft.data.read import load
from regraft.data.safe_image import LARGE, BadImage, fault, frames_of, loaded, on_white, opened
from regraft.errors import DataError, RegraftError
from regraft.phases.audit.image_scan import look

SECONDS, MEMORY = 1.0, 200 * 2**20


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))


def files_below(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*")}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_hostile_archive_is_refused_and_leaves_nothing_anywhere(tmp_path: Path, name: str):
    place = tmp_path / "place"
    place.mkdir()
    archive = ARCHIVES[name](place)
    before = files_below(place)
    started = time.process_time()
    with pytest.raises(BadArchive) as caught:
        load(DataSpec(path=str(archive)))
    assert time.process_time() - started < SECONDS
    assert str(archive) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files_below(place) == before
    assert not list((tmp_path / "cache" / "archives").iterdir())
    assert not list(tmp_path.rglob("canary*"))
    assert not Path("/tmp/canary.csv").exists()


def test_data_comes_out_of_every_kind_of_archive_as_it_went_in(tmp_path: Path):
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "train.csv").write_bytes(GOOD)
    wanted = load(DataSpec(path=str(plain)))
    entries = [(member("tickets", tarfile.DIRTYPE), b""), (member("tickets/train.csv"), GOOD)]
    made = [
        zipped(tmp_path / "a.zip", {"tickets/train.csv": GOOD, "__MACOSX/tickets/._train.csv": b"\0\5\x16\7"}),
        zipped(tmp_path / "flat.zip", {"train.csv": GOOD, ".DS_Store": b"x"}),
        zipped(tmp_path / "stored.zip", {"train.csv": GOOD}, change=lambda i: setattr(i, "compress_type", zipfile.ZIP_STORED)),
        tarred(tmp_path / "a.tar", entries),
        tarred(tmp_path / "a.tar.gz", entries),
        tarred(tmp_path / "a.tgz", [(member("x" * 90 + "/" + "y" * 90 + "/train.csv"), GOOD)]),
        tarred(tmp_path / "pax.tar", [(member("z" * 200 + "/train.csv"), GOOD)], form=tarfile.PAX_FORMAT),
    ]  # fmt: skip
    for archive in made:
        found = load(DataSpec(path=str(archive)))
        assert found.splits["train"].take("text").equals(wanted.splits["train"].take("text")), archive.name
        assert {s: p.rows.tolist() for s, p in found.splits.items()} == {
            s: p.rows.tolist() for s, p in wanted.splits.items()
        }


def test_an_archive_of_zip64_is_read(tmp_path: Path):
    with (
        zipfile.ZipFile(tmp_path / "big.zip", "w") as archive,
        archive.open("train.csv", "w", force_zip64=True) as entry,
    ):
        entry.write(GOOD)
    assert load(DataSpec(path=str(tmp_path / "big.zip"))).schema.label == ("label",)


def test_image_folders_come_out_of_archives_and_are_extracted_once(tmp_path: Path, monkeypatch):
    planted = image_folder(tmp_path / "data")
    entries = {str(f.relative_to(tmp_path / "data")): f.read_bytes() for f in sorted(planted.path.rglob("*.jpg"))}
    archive = zipped(tmp_path / "images.zip", entries)
    data = load(planted.spec(path=str(archive), on_bad_sample="skip"))
    assert bad_sample_facts(data)["rows"] == len(planted.bad)
    monkeypatch.setattr(archives, "_extract", lambda *_: pytest.fail("the archive was extracted again"))
    assert load(planted.spec(path=str(archive), on_bad_sample="skip")).fingerprint == data.fingerprint


def test_a_table_in_an_archive_may_not_name_images_outside_of_it(tmp_path: Path):
    (tmp_path / "secret.jpg").write_bytes(photo(1))
    rows = [f"{name},{'ab'[k % 2]}" for k, name in enumerate([f"p/{k}.jpg" for k in range(38)])]
    rows += [f"{tmp_path}/secret.jpg,a", "../../../secret.jpg,b"]
    entries = {"train.csv": ("image,label\n" + "\n".join(rows)).encode()}
    entries |= {f"p/{k}.jpg": photo(k) for k in range(38)}
    archive = zipped(tmp_path / "x.zip", entries)
    with pytest.raises(DataError, match=r"row 38 of train.csv .* lies outside of the archive"):
        load(DataSpec(path=str(archive), image="image", label="label"))


@pytest.mark.parametrize(
    ("caps", "said"),
    [
        (Caps(entries=2), "more than 2 entries"),
        (Caps(total=3000), "more than 3,000 bytes"),
        (Caps(file=1000), "more than 1,000"),
        (Caps(depth=0), "too long or too deep"),
        (Caps(free=0, ratio=2), "2 times its size"),
    ],
)
def test_every_cap_holds_for_both_formats(tmp_path: Path, caps: Caps, said: str):
    names = [f"f/{k}.csv" for k in range(3)]
    for archive in (
        zipped(tmp_path / "x.zip", dict.fromkeys(names, GOOD)),
        tarred(tmp_path / "x.tgz", [(member(name), GOOD) for name in names]),
    ):
        with pytest.raises(BadArchive, match=said):
            extracted(archive, caps=caps)


# ---- images


@pytest.mark.parametrize("name", IMAGES)
def test_a_hostile_image_is_refused_at_once_wherever_an_image_is_opened(name: str):
    data = IMAGES[name]()
    started = time.process_time()
    with pytest.raises(BadImage) as caught:
        loaded(data, name="x.jpg")
    assert fault(data) is not None
    assert look(data).bad
    with pytest.raises(RegraftError):
        ImagePreprocessor.plain("image", (8, 8)).encode({"image": [data]})
    assert time.process_time() - started < 4 * SECONDS
    assert str(caught.value).startswith("x.jpg: ")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux")
def test_all_hostile_images_and_archives_together_are_refused_in_little_memory(tmp_path: Path):
    images = [make() for make in IMAGES.values()]
    packed = []
    for name, pack in ARCHIVES.items():
        place = tmp_path / name.replace(" ", "-")
        place.mkdir()
        packed.append(pack(place))

    def measure() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for data in images:
            assert fault(data) is not None
            assert look(data).bad
        for archive in packed:
            with pytest.raises(BadArchive):
                extracted(archive)
        return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

    ended = forked(measure)
    assert (ended.code, ended.error) == (0, "")
    assert ended.value < MEMORY


def test_honest_large_images_are_taken_and_the_frames_of_others_counted():
    noise = np.random.default_rng(0).integers(0, 255, (1100, 1100, 3), dtype=np.uint8)
    large = Image.fromarray(noise).resize((4200, 4200))
    data = saved(large, "JPEG", quality=80)
    assert large.width * large.height > LARGE
    assert fault(data) is None
    frames = [Image.new("L", (8, 8), k) for k in range(7)]
    for form in ("GIF", "TIFF"):
        data = saved(frames[0], form, save_all=True, append_images=frames[1:])
        assert frames_of(data, form) == Image.open(io.BytesIO(data)).n_frames == 7


def test_conversion_in_strips_gives_the_pixels_of_conversion_at_once(monkeypatch):
    noise = np.random.default_rng(1).integers(0, 255, (37, 29, 4), dtype=np.uint8)
    clear = Image.fromarray(noise, "RGBA")
    ground = Image.new("RGBA", clear.size, "white")
    whole = np.asarray(Image.alpha_composite(ground, clear).convert("RGB"))
    monkeypatch.setattr("regraft.data.safe_image.STRIP", 100)
    assert np.array_equal(np.asarray(on_white(clear)), whole)
    deep = np.random.default_rng(2).integers(0, 65536, (37, 29)).astype(np.uint16)
    wanted = np.round(deep.astype(np.float64) / 257).astype(np.uint8)
    assert np.array_equal(np.asarray(converted(Image.fromarray(deep), 1)), wanted)


def test_a_format_that_runs_programs_is_not_among_those_that_are_opened():
    for form in ("PNG", "JPEG", "BMP"):
        assert opened(saved(Image.new("RGB", (9, 9)), form)).format == form
    for form in ("EPS", "PDF", "ICO", "TGA", "PCX", "SGI", "JPEG2000"):
        with pytest.raises(BadImage, match="not an image in a known format"):
            opened(saved(Image.new("RGB", (16, 16)), form))


def test_a_bomb_of_the_right_size_is_let_through_only_below_the_large_ones():
    assert fault(png_claiming(4_000, 4_000, body=bytes(4_001 * 4_000))) is None
    kind, why = fault(png_claiming(4_100, 4_100, body=bytes(4_101 * 4_100))) or ("", "")
    assert (kind, "4100 x 4100 pixels in" in why) == ("decompression-bomb", True)
