"""Confused pairs, hard examples, per-class tables, latency and the metrics document."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from regraft.phases.evaluate.classification import confusion_matrix, per_class
from regraft.phases.evaluate.collect import (
    METRICS_FORMAT,
    Question,
    Scored,
    json_ready,
    metrics_document,
    reliability_of,
)
from regraft.phases.evaluate.examine import confused_pairs, hard_examples, most_confused_classes
from regraft.phases.evaluate.latency import latency


def test_confusion_and_per_class_equal_scikit_learn():
    rng = np.random.default_rng(0)
    y, hat = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    hat[hat == 3] = 0  # one class is never predicted
    assert (confusion_matrix(hat, y, 4) == sk.confusion_matrix(y, hat)).all()
    rows = per_class(hat, y, tuple("abcd"))
    expected = sk.precision_recall_fscore_support(y, hat, zero_division=0)
    for name, column in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert [row[name] for row in rows] == pytest.approx(column.tolist())


def test_confused_pairs_are_the_largest_off_diagonal_cells_and_zeros_are_left_out():
    counts = np.array([[9, 1, 0], [0, 5, 5], [0, 0, 8]])
    pairs = confused_pairs(counts, ("a", "b", "c"))
    assert pairs == [
        {"label": "b", "predicted": "c", "count": 5, "share": 0.5},
        {"label": "a", "predicted": "b", "count": 1, "share": 0.1},
    ]
    assert most_confused_classes(counts, 2) == [1, 2]


def test_hard_examples_are_the_rows_with_the_least_probability_on_their_label():
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.99, 0.01], [0.5, 0.5]])
    found = hard_examples(
        p, np.array([0, 0, 1, -1]), np.array([10, 20, 30, 40]), top=2, task="binary", classes=("no", "yes")
    )
    assert [each["row"] for each in found] == [30, 20]
    assert found[0]["loss"] == pytest.approx(-np.log(0.01))
    assert (found[0]["label"], found[0]["predicted"], found[0]["probability"]) == ("yes", "no", 0.99)


def test_hard_examples_of_regression_and_multilabel_say_what_was_wrong():
    number = hard_examples(np.array([1.0, 5.0]), np.array([1.0, 2.0]), np.array(["a.png", "b.png"]), task="regression")
    assert (number[0]["row"], number[0]["loss"], number[0]["predicted"]) == ("b.png", 3.0, 5.0)
    labels = hard_examples(
        np.array([[0.9, 0.2]]), np.array([[0, 1]]), np.array([0]), task="multilabel", classes=("x", "y")
    )
    assert (labels[0]["label"], labels[0]["predicted"]) == (["y"], ["x"])


@pytest.mark.inventory("latency-p95", by="regraft adapt; metrics.json and the report")
def test_latency_leaves_the_warm_up_out_and_names_the_slowest_inputs():
    now, calls = [0.0], []

    def predict(item):
        calls.append(item)
        now[0] += item

    measured = latency(predict, [0.001, 0.004, 0.002], warmup=2, runs=6, clock=lambda: now[0], threads=2)
    assert {key: measured.to_json()[key] for key in ("runs", "warmup", "threads")} == {
        "runs": 6,
        "warmup": 2,
        "threads": 2,
    }
    assert measured.to_json()["p95_ms"] == pytest.approx(4.0)
    assert len(calls) == 8
    assert measured.to_json()["p50_ms"] == pytest.approx(2.0)
    assert [each["row"] for each in measured.slowest(["a", "b", "c"], 2)] == ["b", "c"]


def example(task, n=80):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    p = rng.dirichlet(np.ones(3), size=n) * 0.5 + 0.5 * np.eye(3)[y]
    if task == "regression":
        return Scored(scores=p[:, 0], targets=y.astype(np.float32), rows=np.arange(n))
    return Scored(scores=p, targets=np.eye(3)[y] if task == "multilabel" else y, rows=np.arange(n))


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_the_metrics_document_is_strict_json_with_the_promised_keys(task):
    question = Question(task=task, classes=() if task == "regression" else ("a", "b", "c"), resamples=50)
    scored = example(task)
    splits = {"valid": scored, "test": scored}
    document = metrics_document(
        question,
        final=splits,
        probe=splits,
        last_layer_probe={},
        shown=[f"row {i}" for i in range(80)],
        shown_as="file",
        extra={"probe": {"depths": [np.int64(3)]}, "candidates": [], "size": {"bytes": np.float32("nan")}},
    )
    again = json.loads(json.dumps(document, allow_nan=False))
    assert again["format"] == METRICS_FORMAT
    assert set(again["final"]["test"][again["primary"]]) == {"value", "low", "high"}
    assert again["probe"]["depths"] == [3]
    assert again["versus_probe"]["difference"] == 0.0
    assert again["hard_examples"][0]["file"].startswith("row ")
    assert again["size"]["bytes"] is None
    assert ("confusion" in again) == (task == "multiclass")


def test_reliability_of_a_split_holds_bins_before_and_after():
    scored = example("multiclass")
    found = reliability_of(Question(task="multiclass", classes=("a", "b", "c")), scored, scored, split="test")
    assert found["split"] == "test"
    assert found["before"] == found["after"]
    assert sum(b["count"] for b in found["before"]) == 80


def test_json_ready_leaves_no_numpy_and_no_infinity():
    assert json_ready({"a": np.arange(2), 3: (np.float64("inf"), np.bool_(True))}) == {"a": [0, 1], "3": [None, True]}
