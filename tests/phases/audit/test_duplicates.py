"""Duplicates of pairs, across cuts, in samples of many rows; and what a cleaned copy does about contradictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from regraft.config.data import DataSpec
from regraft.data.dataset import Dataset, Schema, Split
from regraft.data.read import load
from regraft.phases.audit import text_duplicates
from regraft.phases.audit.edits import is_near
from regraft.phases.audit.fix import fix
from regraft.phases.audit.minhash import candidates, signatures
from regraft.phases.audit.parts import parts_of
from regraft.phases.audit.run import audit
from regraft.phases.audit.text_duplicates import duplicate_findings
from regraft.phases.findings import AuditReport


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))


def dataset_of(tables: dict[str, dict], *, inputs: tuple[str, ...] = ("text",)) -> Dataset:
    schema = Schema(modality="text", inputs=inputs, label=("label",), task="binary", classes=("a", "b"))
    splits = {
        name: Split(name=name, file=f"{name}.csv", table=pa.table(columns), rows=np.arange(len(columns["label"])))
        for name, columns in tables.items()
    }
    return Dataset(path=Path(), schema=schema, splits=splits, given=frozenset(splits))


def rows_of(report: AuditReport, kind: str, split: str = "train") -> tuple:
    return tuple(row for f in report.findings if f.kind == kind and f.split == split for row in f.rows)


@pytest.mark.parametrize(
    ("one", "two", "near"),
    [
        ("a dog is running over the wet grass near the river", "a cat is running over the wet grass near the river", 0),
        ("a man is playing the guitar on a small stage at night", "a man is not playing the guitar on a small stage at night", 0),
        ("the man is playing the guitar on a small stage at night", "a man is playing the guitar on a small stage at night", 1),
        ("the room has 2 beds and a view over the old town square", "the room has 3 beds and a view over the old town square", 0),
        ("we walked along the harbour until it was quite dark", "we walked slowly along the harbour until it was quite dark", 1),
        ("the boy ran over the wet grass near the river", "the toy ran over the wet grass near the river", 0),
        ("same", "same", 1),
    ],
)  # fmt: skip
def test_a_word_that_changes_what_is_said_makes_another_text(one, two, near):
    assert is_near(one, two, 0.8) is bool(near)
    assert is_near(two, one, 0.8) is bool(near)


def test_a_pair_is_near_only_where_both_columns_are():
    first = "two young children are playing with a red ball in the park today"
    other = "nobody is standing beside the tall grey fountain of the market square"
    third = "nobody is sleeping beside the tall grey fountain of the market square"
    pairs = {
        "a": [first, first, first.replace("two", "Two,")],
        "b": [other, third, other + " now"],
        "label": ["a", "b", "a"],
    }
    report = audit(dataset_of({"train": pairs}, inputs=("a", "b")))
    assert rows_of(report, "near-duplicate") == (0, 2)


def test_candidates_are_the_pairs_that_share_a_band():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**40, 300).astype(np.uint64)
    hashes[100:120] = hashes[40:60]
    signature = signatures(hashes, np.arange(0, 300, 20), seed=1)
    found = {tuple(pair) for pair in candidates(signature).tolist()}
    bands = signature.reshape(15, -1, 4)
    expected = {(i, j) for i in range(15) for j in range(i + 1, 15) if (bands[i] == bands[j]).all(axis=1).any()}
    assert found == expected
    assert (2, 5) in found


def test_a_sample_holds_small_splits_whole_and_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_duplicates, "SAMPLE", 60)
    train = {
        "text": [f"alpha{k} beta{k * 3} gamma{k * 7} delta{k} omega{k}" for k in range(500)],
        "label": ["a", "b"] * 250,
    }
    test = {"text": [f"one{k} two{k} three{k} four{k} five{k}" for k in range(20)], "label": ["a", "b"] * 10}
    test["text"][19] = test["text"][3] + " please"
    dataset = dataset_of({"train": train, "test": test})
    findings, facts = duplicate_findings(parts_of(dataset), dataset.schema, seed=0)
    assert facts["near_duplicates"] == {"rows": 520, "compared": 60, "seed": 0}
    (near,) = [f for f in findings if f.kind == "near-duplicate" and f.split == "test"]
    assert near.rows == (3, 19)
    assert "searched in a sample of 60 of 520 rows" in near.message


def test_exact_copies_are_found_beyond_the_sample(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_duplicates, "SAMPLE", 50)
    texts = [f"text {k} of many {k * 17}" for k in range(3000)]
    texts[2999] = texts[11]
    report = audit(dataset_of({"train": {"text": texts, "label": ["a", "b"] * 1500}}), suspects=False)
    assert rows_of(report, "exact-duplicate") == (11, 2999)


def test_near_copies_on_both_sides_of_a_cut_are_said(tmp_path: Path):
    rng = np.random.default_rng(0)
    words = np.array([f"{a}{b}{c}en" for a in "bdfgklm" for b in "aeiou" for c in "nrst"])
    base = [" ".join(rng.choice(words, 14)) for _ in range(120)]
    rows = [(text, "ab"[k % 2]) for k, text in enumerate([*base, *(f"{text} please" for text in base)])]
    (tmp_path / "d.csv").write_text("text,label\n" + "".join(f"{t},{y}\n" for t, y in rows))
    data = load(DataSpec(path=str(tmp_path / "d.csv"), text=("text",), label=("label",), modality="text"))
    side = {int(row): name for name, split in data.splits.items() for row in split.rows}
    expected = {k for k in range(240) if side[k] != "train" and side[k] != side[(k + 120) % 240]}
    report = audit(data, suspects=False)
    (found,) = [f for f in report.findings if f.kind == "near-duplicate-across-cut"]
    assert found.severity == "info"
    assert set(found.rows) == expected
    assert all(r["row"] == (row + 120) % 240 for row, r in zip(found.rows, found.related, strict=True))
    assert len(rows_of(report, "near-duplicate")) == 240


def test_a_cleaned_copy_keeps_majority_labels_the_delimiter_and_class_names(tmp_path: Path):
    folder = tmp_path / "d"
    folder.mkdir()
    rows = [
        ("one text that is there thrice", "0"),
        ("one text that is there thrice", "1"),
        ("one text that is there thrice", "0"),
        ("another, with two labels", "0"),
        ("another, with two labels", "1"),
        *((f"plain text number {k} about {k * 7} things", str(k % 2)) for k in range(30)),
    ]
    for name, some in (("train", rows), ("test", [(f"other {k} words {k * 3} here", str(k % 2)) for k in range(8)])):
        (folder / f"{name}.csv").write_text("text;label\n" + "".join(f"{t};{y}\n" for t, y in some))
    (folder / "classes.json").write_text('["no", "yes"]')
    data = load(DataSpec(path=str(folder), text=("text",), label=("label",), modality="text"))
    fixed = fix(data, audit(data, suspects=False), tmp_path / "clean")
    lines = (tmp_path / "clean" / "train.csv").read_text().splitlines()
    assert lines[0] == '"text";"label"'
    assert [line for line in lines if "thrice" in line] == ['"one text that is there thrice";"no"']
    assert not [line for line in lines if "another" in line]
    assert fixed.dropped["label-conflict"] == {"train": 3}
    assert fixed.dropped["exact-duplicate"] == {"train": 1}
    assert json.loads((tmp_path / "clean" / "classes.json").read_text()) == ["no", "yes"]
    again = load(DataSpec(path=str(tmp_path / "clean")))
    assert again.schema.classes == ("no", "yes")
    assert not rows_of(audit(again, suspects=False), "label-conflict")


@pytest.mark.parametrize(
    "name", [pytest.param("banking77", marks=pytest.mark.slow), "sst2", "sick_pairs", "adult", "wine_quality_red"]
)
def test_ordinary_data_has_no_errors(name, shared_data):
    report = audit(load(DataSpec(path=str(shared_data(name)))), suspects=False)
    assert not report.errors
    if name == "sick_pairs":  # its sentences are variations of each other, and most differ in a word that matters
        assert len(rows_of(report, "near-duplicate-across-splits", "test")) < 200
