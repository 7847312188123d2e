"""Suspected labels: found where a good judge is contradicted, and not made up where the task is hard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from regraft.config.data import DataSpec
from regraft.data.dataset import Dataset, Schema, Split
from regraft.data.read import load
from regraft.errors import DataError
from regraft.phases.audit.run import audit, with_suspects
from regraft.phases.audit.suspects import suspects, trust


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))


def judged(rows: int, classes: int, *, sharpness: float, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(probabilities of a calibrated judge, labels drawn from them, rows whose label was then drawn at random)."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(rows, classes)) * sharpness
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (probabilities.cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)
    wrong = np.flatnonzero(rng.random(rows) < noise)
    labels[wrong] = (labels[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return probabilities, labels, wrong


def test_a_calibrated_judge_of_a_hard_task_names_nobody():
    probabilities, labels, _ = judged(4000, 4, sharpness=3.0, noise=0.0)
    verdict = trust(probabilities, labels)
    assert 0.7 < verdict.accuracy < 0.9
    assert abs(verdict.surplus) < 0.15
    assert verdict.bound == 0
    assert not len(suspects(probabilities, labels)[0])


def test_the_same_judge_names_labels_that_were_changed_and_most_it_names_were():
    probabilities, labels, wrong = judged(4000, 4, sharpness=4.0, noise=0.08)
    assert trust(probabilities, labels).surplus > 0.3
    rows, suggested = suspects(probabilities, labels)
    assert len(np.intersect1d(rows, wrong)) > 0.5 * len(rows)
    assert len(np.intersect1d(rows, wrong)) > 0.6 * len(wrong)
    assert (probabilities[np.arange(4000), labels][rows] < 0.5 / 4).all()
    assert (suggested == probabilities[rows].argmax(axis=1)).all()


def test_a_judge_that_is_right_on_two_thirds_names_nobody():
    probabilities, labels, _ = judged(4000, 4, sharpness=2.0, noise=0.1)
    assert trust(probabilities, labels).accuracy < 0.7
    assert not len(suspects(probabilities, labels)[0])


def data() -> tuple[Dataset, np.ndarray, np.ndarray]:
    probabilities, labels, wrong = judged(600, 3, sharpness=8.0, noise=0.05)
    names = np.array(["a", "b", "c"])
    words = [f"w{k} x{k * 7 % 600} y{k * 11 % 600}" for k in range(600)]
    table = pa.table({"text": words, "label": names[labels]})
    split = Split(name="train", file="train.csv", table=table, rows=np.arange(600))
    schema = Schema(modality="text", inputs=("text",), label=("label",), task="multiclass", classes=("a", "b", "c"))
    dataset = Dataset(path=Path(), schema=schema, splits={"train": split}, given=frozenset(["train"]))
    return dataset, probabilities, wrong


def test_label_errors_can_be_left_to_a_later_probe():
    dataset, probabilities, wrong = data()
    first = audit(dataset, suspects=False)
    assert not [f for f in first.findings if "label" in f.kind and f.rows]
    assert "suspected_label_errors" not in first.facts["samples"]
    later = with_suspects(first, dataset, {"train": probabilities})
    (found,) = [f for f in later.findings if f.kind == "suspected-label-error"]
    assert len(set(found.rows) & set(wrong.tolist())) > 0.6 * len(found.rows)
    assert later.facts["counts"]["suspected-label-error"] == len(found.rows)
    at_once = audit(dataset, probabilities={"train": probabilities})
    assert [f for f in at_once.findings if f.kind == found.kind] == [found]
    assert with_suspects(later, dataset, {"train": probabilities}) == later


def test_given_features_judge_the_rows_that_have_them_also_after_a_cut(tmp_path: Path):
    rng = np.random.default_rng(1)
    true = rng.integers(0, 3, 400)
    given = true.copy()
    given[:12] = (true[:12] + 1) % 3
    lines = [f"nothing to learn from {rng.integers(1e9)} here,{'abc'[y]}\n" for y in given]
    (tmp_path / "d.csv").write_text("text,label\n" + "".join(lines))
    dataset = load(DataSpec(path=str(tmp_path / "d.csv"), text=("text",), label=("label",), modality="text"))
    rows = dataset.splits["train"].rows
    features = np.eye(3)[true[rows]] + rng.normal(size=(len(rows), 3)) * 0.1
    report = audit(dataset, features={"train": features})
    (found,) = [f for f in report.findings if f.kind == "suspected-label-error"]
    assert set(found.rows) == set(rows.tolist()) & set(range(12))
    assert report.facts["samples"]["suspected_label_errors"]["judged"] == len(rows)


def test_probabilities_for_another_number_of_rows_are_refused():
    dataset, probabilities, _ = data()
    with pytest.raises(DataError, match="split 'train' have 599 rows, the data has 600; give one row each"):
        with_suspects(audit(dataset, suspects=False), dataset, {"train": probabilities[:599]})


def test_hard_tables_get_a_hint_instead_of_hundreds_of_suspects(shared_data):
    report = audit(load(DataSpec(path=str(shared_data("wine_quality_red")))))
    kinds = {f.kind: f for f in report.findings}
    assert "suspected-label-error" not in kinds
    assert kinds["labels-hard-to-judge"].severity == "info"
    assert "right on 6" in kinds["labels-hard-to-judge"].message
    assert not report.errors


def test_planted_noise_is_still_found_in_the_messy_texts(shared_data):
    import csv
    import json

    folder = shared_data("messy_text_dev")
    truth = json.loads((folder / "ground_truth.json").read_text())["defects"]["label_noise"]
    with (folder / "data" / "train.csv").open(encoding="utf-8", errors="replace", newline="") as file:
        place = {record["id"]: row for row, record in enumerate(csv.DictReader(file))}
    planted = {place[entry["id"]] for entry in truth}
    report = audit(load(DataSpec(path=str(folder / "data")), keep_bad=True))
    (found,) = [f for f in report.findings if f.kind == "suspected-label-error"]
    assert len(planted & set(found.rows)) >= 34
    assert len(found.rows) <= 50
    assert report.errors
