"""The audit on made-up data with one defect of each kind, and on the messy sets with planted ones."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from regraft.config.data import DataSpec
from regraft.data.dataset import Dataset, Schema, Split
from regraft.data.read import load
from regraft.errors import RunError
from regraft.phases.audit.duplicates import Keyed, exact_within
from regraft.phases.audit.edits import is_near, is_typo
from regraft.phases.audit.fix import fix
from regraft.phases.audit.image_near import alignment, near_pairs
from regraft.phases.audit.image_scan import look
from regraft.phases.audit.labels import merge_spellings
from regraft.phases.audit.minhash import candidates, shingles, signatures
from regraft.phases.audit.parts import parts_of
from regraft.phases.audit.run import audit, write_findings_csv
from regraft.phases.audit.suspects import left_out_scores, suspects
from regraft.phases.audit.text import iban, luhn, repaired
from regraft.phases.audit.text_duplicates import duplicate_findings, keyed_parts
from regraft.phases.findings import AuditReport, Finding


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))


def dataset_of(train: dict, test: dict | None = None, **schema) -> Dataset:
    tables = {"train": pa.table(train)} | ({"test": pa.table(test)} if test else {})
    splits = {n: Split(name=n, file=f"{n}.csv", table=t, rows=np.arange(t.num_rows)) for n, t in tables.items()}
    given = {
        "modality": "text",
        "inputs": ("text",),
        "label": ("label",),
        "task": "multiclass",
        "classes": ("a", "b"),
    } | schema
    return Dataset(path=Path(), schema=Schema(**given), splits=splits, given=frozenset(splits))


def rows_of(report: AuditReport, kind: str, split: str = "train") -> tuple:
    return tuple(
        row for finding in report.findings if finding.kind == kind and finding.split == split for row in finding.rows
    )


TRAIN = {
    "text": [
        "the card has not arrived yet",  # 0
        "the card has not arrived yet",  # 1 copy of 0
        "how do i change my pin code",  # 2
        "how do i change my pin code",  # 3 copy of 2 with another label
        "N/A",  # 4
        "my CAFÃ© bill was wrong somehow",  # 5
        "<p>why was I charged&nbsp;twice</p>",  # 6
        "write to jane@example.com or pay 4111 1111 1111 1111",  # 7
        "this one stands in the test file",  # 8
        "no label at all for this row",  # 9
        "the weather is fine in june",  # 10
    ],
    "label": ["card", "card", "card", "fee", "card", "fee", "fee", "Card ", "card", "", "fee"],
}
TEST = {
    "text": ["THIS one stands in the test file!", "how do i change my pinn code", "new text"],
    "label": ["card", "card", "loan"],
}


def test_each_planted_defect_is_named_with_its_rows():
    report = audit(dataset_of(TRAIN, TEST))
    assert rows_of(report, "exact-duplicate") == (0, 1)
    assert rows_of(report, "label-conflict") == (2, 3)
    assert rows_of(report, "missing-text") == (4,)
    assert rows_of(report, "mojibake") == (5,)
    assert rows_of(report, "html-remains") == (6,)
    assert rows_of(report, "personal-data") == (7,)
    assert rows_of(report, "label-spelling") == (7,)
    assert rows_of(report, "missing-label") == (9,)
    assert rows_of(report, "unseen-label", "test") == (2,)
    assert rows_of(report, "near-duplicate-across-splits", "test") == (0, 1)
    near = next(f for f in report.findings if f.kind == "near-duplicate-across-splits")
    assert [r["row"] for r in near.related] == [8, 2]
    assert [f.severity for f in report.findings] == sorted(
        (f.severity for f in report.findings), key=["error", "warning", "info"].index
    )


def test_a_clean_set_has_no_duplicates_conflicts_or_errors():
    words = [
        "red",
        "green",
        "blue",
        "cold",
        "warm",
        "long",
        "short",
        "old",
        "new",
        "fast",
        "slow",
        "high",
        "low",
        "soft",
        "hard",
    ]
    texts = [f"{a} {b} {a}{b} thing number" for a in words for b in words if a != b]
    report = audit(dataset_of({"text": texts, "label": ["a", "b"] * (len(texts) // 2)}))
    assert not report.errors
    assert not {f.kind for f in report.findings} & {
        "exact-duplicate",
        "label-conflict",
        "missing-text",
        "label-spelling",
    }


def test_group_and_time_leaks_are_errors_that_name_rows():
    train = {
        "text": ["one a", "two b", "three c"],
        "label": ["a", "b", "a"],
        "who": ["x", "y", "z"],
        "day": ["2024-01-01", "2024-03-01", ""],
    }
    test = {"text": ["four d", "five e"], "label": ["a", "b"], "who": ["z", "w"], "day": ["2024-02-01", "2024-04-01"]}
    report = audit(dataset_of(train, test, group="who", time="day"))
    assert rows_of(report, "group-leakage", "test") == (0,)
    assert rows_of(report, "time-leakage", "train") == (1,)
    assert {"group-leakage", "time-leakage"} <= {f.kind for f in report.errors}


def test_columns_that_leak_the_label_are_told_from_innocent_ones():
    rng = np.random.default_rng(0)
    label = rng.choice(["a", "b", "c"], 300)
    train = {
        "text": [f"text {k} {rng.integers(1e9)}" for k in range(300)],
        "label": label.tolist(),
        "ticket": [f"{'XYZ'['abc'.index(v)]}{rng.integers(1e6)}" for v in label],
        "length": rng.integers(10, 90, 300),
        "source": ["web"] * 300,
    }
    report = audit(dataset_of(train))
    assert [f.column for f in report.findings if f.kind == "leaking-column"] == ["ticket"]
    assert [f.column for f in report.findings if f.kind == "constant-column"] == ["source"]
    assert "ticket" in [f.column for f in report.findings if f.kind == "id-column"]


def test_spellings_merge_but_numbered_labels_do_not():
    labels = ("Card lost", "card_lost", "card lots", "digit 1", "digit 2")
    merged = merge_spellings(labels, np.array([2, 100, 1, 50, 1]))
    assert [labels[m] for m in merged] == ["card_lost", "card_lost", "card_lost", "digit 1", "digit 2"]


@pytest.mark.parametrize(
    ("one", "two", "near"),
    [
        ("how can i exchange currencies with this app", "how can i exchange currencies wwith this app", True),
        ("do i have to verify who i am", "do i have to verify who i am please", True),
        ("is my transfer still pending now", "is my transfer pending still now", True),
        ("can i exchange currencies with this app", "how can i exchange currencies with this app", False),
        ("i was charged 10 pounds twice", "i was charged 20 pounds twice", False),
        ("why was there a fee for my cash", "why was there a fee on my cash", False),
    ],
)
def test_small_edits_are_near_and_other_words_are_not(one, two, near):
    assert is_near(one, two, 0.8) is near


def test_a_typo_never_changes_a_digit():
    assert is_typo("account", "acount")
    assert is_typo("form", "from")
    assert not is_typo("room1", "room2")


def test_signatures_estimate_the_jaccard_similarity_and_find_the_pair():
    texts = [
        "the quick brown fox jumps over the lazy dog",
        "the quick brown fox jumped over the lazy dog",
        "something else entirely",
    ]
    signature = signatures(*shingles(texts), seed=0)
    sets = [{f" {t} "[i : i + 3] for i in range(len(t))} for t in texts]
    exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    assert abs((signature[0] == signature[1]).mean() - exact) < 0.15
    assert candidates(signature).tolist() == [[0, 1]]


def test_left_out_scores_equal_refitting_without_each_row():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(12, 3)), np.eye(2)[rng.integers(0, 2, 12)]
    fast = left_out_scores(x, y, np.ones(12), is_kernel=False)
    full = np.column_stack([x, np.ones(12)])
    for k in range(12):
        rest = np.delete(full, k, 0)
        slow = full[k] @ np.linalg.solve(rest.T @ rest + 0.3 * np.eye(4), rest.T @ np.delete(y, k, 0))
        np.testing.assert_allclose(fast[k], slow, atol=1e-9)
    np.testing.assert_allclose(left_out_scores(x @ x.T, y, np.ones(12), is_kernel=True), fast, atol=1e-8)


def test_given_probabilities_name_the_flipped_labels():
    rng = np.random.default_rng(2)
    true = rng.integers(0, 3, 300)
    given = true.copy()
    flipped = rng.choice(300, 20, replace=False)
    given[flipped] = (given[flipped] + 1) % 3
    probabilities = np.full((300, 3), 0.05)
    probabilities[np.arange(300), true] = 0.9
    rows, suggested = suspects(probabilities, given)
    assert set(rows) == set(flipped)
    assert (suggested == true[rows]).all()


def test_mojibake_card_and_account_numbers_are_recognised():
    assert repaired("CAFÃ‰ and naÃ¯ve â€œquotesâ€\x9d") == "CAFÉ and naïve “quotes”"
    assert repaired("São Paulo, Ünal, 5 € Â") is None
    assert luhn("4111 1111 1111 1111")
    assert not luhn("4111 1111 1111 1112")
    assert iban("GB82 WEST 1234 5698 7654 32")
    assert not iban("GB83 WEST 1234 5698 7654 32")


def test_findings_csv_has_a_line_for_each_row_and_no_formulas(tmp_path: Path):
    finding = Finding(
        kind="label-spelling", severity="warning", message="=cmd()", split="train", rows=(3, 5), suggested=("+a", "b")
    )
    write_findings_csv(AuditReport(findings=(finding,)), tmp_path / "f.csv")
    lines = list(csv.DictReader((tmp_path / "f.csv").read_text().splitlines()))
    assert [line["row"] for line in lines] == ["3", "5"]
    assert [line["suggested"] for line in lines] == ["'+a", "b"]
    assert lines[0]["message"] == "'=cmd()"


def test_exact_duplicates_of_200_000_rows_take_seconds():
    rng = np.random.default_rng(0)
    texts = [f"row {v} {'x' * 180}" for v in rng.integers(0, 10**12, 200_000)]
    texts[-3:] = texts[:3]
    data = dataset_of({"text": texts, "label": ["a"] * 200_000})
    start = time.process_time()
    found = exact_within(keyed_parts(parts_of(data), data.schema)[0])
    assert found is not None
    assert found.rows == (0, 1, 2, 199_997, 199_998, 199_999)
    assert time.process_time() - start < 20


def test_fix_writes_a_clean_copy_and_never_touches_the_original(tmp_path: Path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, rows in (("train", TRAIN), ("test", TEST)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *zip(rows["text"], rows["label"], strict=True)])
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    spec = {"text": ("text",), "label": ("label",), "modality": "text"}
    data = load(DataSpec(path=str(folder), **spec), keep_bad=True)
    fix(data, audit(data), tmp_path / "clean")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    with (tmp_path / "clean" / "train.csv").open(newline="", encoding="utf-8") as file:
        left = list(csv.DictReader(file))
    assert [row["text"][:12] for row in left] == [
        "the card has",
        "my CAFé bill",
        "<p>why was I",
        "write to jan",
        "the weather ",
    ]
    assert left[3]["label"] == "card"
    with pytest.raises(RunError, match="exists"):
        fix(data, audit(data), tmp_path / "clean")


def photo(seed: int, size: int = 96) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def test_an_edited_picture_is_near_and_another_one_is_not(tmp_path: Path):
    one, other = photo(0), photo(1)
    edited = [
        one.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        one.resize((67, 67)),
        one.crop((5, 5, 91, 91)),
        one.rotate(2),
    ]
    thumbs = []
    for k, image in enumerate([one, *edited, other]):
        image.save(tmp_path / f"{k}.jpg", quality=40)
        thumbs.append(look((tmp_path / f"{k}.jpg").read_bytes()).grey)
    pairs = {(a, b) for a, b, _ in near_pairs(np.stack(thumbs))}
    assert {(0, k) for k in range(1, 5)} <= pairs
    assert all(b != 5 for _, b in pairs)
    assert alignment(thumbs[0], thumbs[1])[0] > 0.99


def test_odd_and_unreadable_images_are_named(tmp_path: Path):
    for split in ("train", "test"):
        for label in ("x", "y"):
            (tmp_path / "d" / split / label).mkdir(parents=True)
            for k in range(3):
                photo(100 * len(split) + 10 * ord(label) + k).save(tmp_path / "d" / split / label / f"{k}.jpg")
    here = tmp_path / "d" / "train" / "x"
    (here / "empty.jpg").write_bytes(b"")
    (here / "junk.jpg").write_bytes(b"junk" * 50)
    (here / "cut.jpg").write_bytes((here / "0.jpg").read_bytes()[:900])
    photo(50).convert("CMYK").save(here / "cmyk.jpg")
    Image.new("RGB", (64, 64), "white").save(here / "blank.png")
    photo(51).save(here / "wrong.jpg", format="PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(52).save(here / "turned.jpg", exif=exif)
    data = load(DataSpec(path=str(tmp_path / "d")), keep_bad=True)
    report = audit(data)
    assert set(rows_of(report, "unreadable")) == {f"train/x/{n}.jpg" for n in ("empty", "junk", "cut")}
    for kind, name in (
        ("cmyk-image", "cmyk.jpg"),
        ("blank-image", "blank.png"),
        ("wrong-extension", "wrong.jpg"),
        ("rotated-image", "turned.jpg"),
    ):
        assert rows_of(report, kind) == (f"train/x/{name}",)
    fix(data, report, tmp_path / "clean")
    again = audit(load(DataSpec(path=str(tmp_path / "clean")), keep_bad=True))
    assert not again.errors
    assert not {f.kind for f in again.findings} & {"cmyk-image", "rotated-image", "wrong-extension", "blank-image"}


def test_the_messy_texts_give_their_planted_rows(shared_data):
    data = load(DataSpec(path=str(shared_data("messy_text_dev") / "data")), keep_bad=True)
    findings, _ = duplicate_findings(parts_of(data), data.schema, seed=0)
    across = {f.kind: len(f.rows) for f in findings if f.split == "test"}
    assert across["exact-duplicate-across-splits"] == 15
    assert across["near-duplicate-across-splits"] >= 15
    assert isinstance(keyed_parts(parts_of(data), data.schema)[0], Keyed)
