"""S2 of data: the parsers of our own meet mutated bytes, and answer with a value or with an error of regraft, at once.

By default a hundred inputs each; the slow test gives each a million (REGRAFT_FUZZ changes that). An input is a function
of the parser's name and its number, so a failure names what to run again.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import signal
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.archive_injectors import GOOD, gif_of_frames, member, saved, tarred, tiff_loop, zipped
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from regraft.data.archives import CAPS, Budget, safe_name
from regraft.data.bad_policy import from_ranges, ranges
from regraft.data.csv_cells import FORMULA, harmless
from regraft.data.delimited import DelimitedReader, decode_odd
from regraft.data.formats import class_names, json_batches, read_idx
from regraft.data.image_config import image_options
from regraft.data.safe_image import frames_of
from regraft.data.sniff import sniff
from regraft.data.stored import Again, Log, Types
from regraft.data.tar_files import pax_records, tar_members
from regraft.data.zip_files import zip_members
from regraft.errors import RegraftError

SAMPLE = 100
FULL = int(os.environ.get("REGRAFT_FUZZ", "1000000"))
LONGEST = 30.0  # seconds for fifty inputs of a few hundred bytes; a hang, not a busy machine
PIECES = [
    b"\0", b"\xff", b'"', b'""', b",", b"\t", b"\n", b"\r", b"\r\n", b";", b"|", b"{", b"}", b"[", b"]", b"null", b"NaN",
    b"1e999", b"-0", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"../", b"PK\1\2",
    b"PK\3\4", b"PK\5\6", b"ustar", b"\xff\xff\xff\xff", b"\x80" + b"\xff" * 11, b"9" * 30, b"\x1f", b"\xc3", b"'", b"\x7f", b":",
    b"0 path=",
]  # fmt: skip


def mutated(seed: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """A seed after some of: bits flipped, pieces put in, parts cut out, doubled, moved, or taken from another seed."""
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        at, end = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        match rng.randrange(8):
            case 0 if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
            case 2:
                data[at:at] = rng.choice(PIECES)
            case 3:
                data[at : at + 4] = rng.choice(PIECES)
            case 4:
                del data[at : min(end, at + rng.choice((1, 4, 40, 4000)))]
            case 5:
                data[at:at] = data[at : min(end, at + 60)] * rng.choice((1, 2, 9))
            case 6:
                other = rng.choice(others)
                data[at : at + 20] = other[: rng.randrange(1, 60)]
            case _:
                del data[at:]
    return bytes(data)


@dataclass(frozen=True)
class Parser:
    """What is called with bytes, and sound inputs to start from."""

    parse: Callable[[bytes, Path], object]
    seeds: list[bytes]


def to_file(parse: Callable[[Path], object], name: str) -> Callable[[bytes, Path], object]:
    def run(data: bytes, folder: Path) -> object:
        file = folder / name
        file.write_bytes(data)
        return parse(file)

    return run


def read_csv(file: Path) -> object:
    reader = DelimitedReader((file,), (sniff(file),))
    try:
        return [batch.num_rows for batch in reader(Types(columns={}), Log())]
    except Again:
        return None


def read_json(file: Path) -> object:
    return [batch.num_rows for batch in json_batches((file,), Types(columns={}), Log())]


def unpack(members: Callable[..., object]) -> Callable[[Path], object]:
    def run(file: Path) -> object:
        budget = Budget(file, file.stat().st_size, CAPS)
        return [sum(map(len, content)) for _, content in members(file, budget)]  # type: ignore[attr-defined]

    return run


def in_memory(pack: Callable[[Path], Path]) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return pack(Path(folder)).read_bytes()


LITTLE = GOOD[:400]
CONFIG = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 224, "width": 224}, "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2, "do_rescale": True, "rescale_factor": 0.00392,
    "do_center_crop": True, "crop_size": 224, "crop_pct": 0.9,
}  # fmt: skip
CSV = [
    LITTLE,
    b'a;b\n"x;y";1\n"z\nq";2\n',
    b"a\tb\n1\t2\n3\t\n",
    "größe,label\nfünf,a\n".encode("cp1252") * 3,
    "text,label\nä,b\n".encode("utf-16"),
    b"\n\na|b\n1|2\n",
]
JSON = [
    b'{"text": "one", "label": 1}\n{"text": "two", "label": 0.5}\n',
    b'[{"a": 1, "b": [1, "x"]}, {"a": null, "b": {"c": 2}}]',
    b'{"a": [1, 2], "b": ["x", "y"]}',
    b'{"a": true, "b": 123456789012345678901}\n{"a": "\\ud83d", "b": NaN}\n',
]
ZIPS = [
    in_memory(lambda d: zipped(d / "x.zip", {"train.csv": LITTLE, "b/c.csv": b"x,y\n"})),
    in_memory(lambda d: zipped(d / "x.zip", {"a.csv": b"x"}, change=lambda i: setattr(i, "compress_type", zipfile.ZIP_STORED))),
]  # fmt: skip
TARS = [
    in_memory(lambda d: tarred(d / "x.tar", [(member("d", tarfile.DIRTYPE), b""), (member("d/a.csv"), LITTLE)])),
    in_memory(lambda d: tarred(d / "x.tar", [(member("n" * 150 + ".csv"), b"x")], form=tarfile.PAX_FORMAT))[:3072],
    in_memory(lambda d: tarred(d / "x.tar", [(member("n" * 150 + ".csv"), b"x")]))[:3072],
]
IDX = b"\0\0\x08\x03" + struct.pack(">III", 2, 3, 3) + bytes(18)
SAVED = [saved(Image.new("L", (8, 8), 3), "GIF"), gif_of_frames(3)]
METADATA = json.dumps({"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}).encode()

PARSERS: dict[str, Parser] = {
    "sniff": Parser(to_file(sniff, "x.csv"), CSV),
    "delimited": Parser(to_file(read_csv, "x.csv"), CSV),
    "json lines": Parser(to_file(read_json, "x.jsonl"), JSON),
    "json": Parser(to_file(read_json, "x.json"), JSON),
    "idx": Parser(to_file(read_idx, "x-idx3-ubyte"), [IDX, b"\0\0\x08\x01" + struct.pack(">I", 4) + b"abcd"]),
    "idx.gz": Parser(to_file(read_idx, "x-idx3-ubyte.gz"), [gzip.compress(IDX, mtime=0)]),
    "class names": Parser(lambda data, _: class_names({b"huggingface": data}), [METADATA, b"{}"]),
    "image configuration": Parser(
        lambda data, folder: to_file(lambda file: image_options(file.parent), "preprocessor_config.json")(data, folder),
        [json.dumps(CONFIG).encode(), json.dumps({**CONFIG, "size": {"shortest_edge": 256}}).encode()],
    ),
    "zip": Parser(to_file(unpack(zip_members), "x.zip"), ZIPS),
    "tar": Parser(to_file(unpack(tar_members), "x.tar"), TARS),
    "tar.gz": Parser(to_file(unpack(tar_members), "x.tgz"), [gzip.compress(tar, mtime=0) for tar in TARS]),
    "gif frames": Parser(lambda data, _: frames_of(data, "GIF"), SAVED),
    "tiff frames": Parser(lambda data, _: frames_of(data, "TIFF"), [tiff_loop()]),
    "rows of a recipe": Parser(
        lambda data, _: from_ranges(data.decode("latin-1"), most=1000), [b"3,17,90-92", b"0-9"]
    ),
    "names in archives": Parser(
        lambda data, folder: safe_name(data.decode("utf-8", errors="surrogateescape"), folder), [b"a/b/c.csv", b"./a//b"]
    ),
}  # fmt: skip


class Hang(BaseException):
    """A parser that does not come back; no parser may catch it."""


def fuzz(name: str, folder: Path, count: int) -> None:
    """`count` inputs for one parser; an assertion with the number of the first that is answered in another way."""
    parser, number, refused = PARSERS[name], 0, 0

    def hangs(*_: object) -> None:
        raise Hang(f"{name}: no answer within {LONGEST} seconds at or after input {number}")

    before = signal.signal(signal.SIGALRM, hangs)
    try:
        for number in range(count):
            if number % 50 == 0:
                signal.setitimer(signal.ITIMER_REAL, LONGEST)
            rng = random.Random(f"{name} {number}")
            data = mutated(rng.choice(parser.seeds), parser.seeds, rng)
            try:
                parser.parse(data, folder)
            except RegraftError:
                refused += 1
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                raise AssertionError(f"{name}, input {number}: {data[:200]!r} raised {said}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert refused < count or count == 0  # some mutations leave an input sound


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_answers_mutated_bytes_with_a_value_or_an_error_of_regraft(tmp_path: Path, name: str):
    fuzz(name, tmp_path, SAMPLE)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_answers_a_million_mutated_inputs(tmp_path: Path, name: str):
    fuzz(name, tmp_path, FULL)


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_takes_what_it_is_meant_for(tmp_path: Path, name: str):
    for seed in PARSERS[name].seeds:
        PARSERS[name].parse(seed, tmp_path)


@pytest.mark.parametrize(
    "body", [b"no length", b" path=x", b"0 path=x\n", b"5", b"99 path=x\n", b"x path=y\n", b"-9 a=b\n"]
)
def test_a_pax_header_that_leads_nowhere_ends_in_an_error(body: bytes):
    with pytest.raises(RegraftError, match="a pax header is not written as it must be"):
        pax_records(body, Path("x.tar"))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.binary(max_size=300))
def test_any_bytes_at_all_are_answered_by_every_parser(tmp_path_factory, data: bytes):
    folder = tmp_path_factory.mktemp("any")
    for parser in PARSERS.values():
        try:
            parser.parse(data, folder)
        except RegraftError:
            continue


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rows=st.sets(st.integers(0, 3000), max_size=80))
def test_rows_are_the_same_after_being_written_and_read(rows: set[int]):
    import numpy as np

    assert from_ranges(ranges(np.array(sorted(rows), np.int64)), most=len(rows)) == sorted(rows)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(cell=st.text(max_size=12))
def test_no_cell_that_is_written_begins_a_formula(cell: str):
    written = harmless(cell)
    assert isinstance(written, str)
    if written.startswith(FORMULA):
        float(written)
    assert written.removeprefix("'") == cell.removeprefix("'")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(raw=st.binary(max_size=50))
def test_bytes_of_any_encoding_become_text(raw: bytes):
    assert len(decode_odd(raw)) == len(raw)
    io.StringIO(decode_odd(raw)).read()
