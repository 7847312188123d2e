"""Class names and targets against plain Python and scikit-learn."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest
from sklearn.preprocessing import MultiLabelBinarizer

from regraft.config.data import DataSpec
from regraft.data.dataset import Schema
from regraft.data.labels import class_values, encode_targets, natural
from regraft.data.read import load
from regraft.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))


def schema(task, classes=(), label=("y",), modality="text"):
    return Schema(modality=modality, inputs=("x",), label=label, task=task, classes=classes)


def chunked(values, kind=None):
    half = len(values) // 2
    return pa.chunked_array([pa.array(values[:half], kind), pa.array(values[half:], kind)])


def test_classes_are_in_natural_order():
    assert sorted(["10", "9", "2.5", "-1"], key=natural) == ["-1", "2.5", "9", "10"]
    assert sorted(["item10", "item9", "Item1", "apple", "7"], key=natural) == ["7", "apple", "Item1", "item9", "item10"]
    assert class_values([chunked([3, 11, 2, 3])], table=False) == ("2", "3", "11")
    assert class_values([chunked([1.0, 2.0, None, 10.0])], table=False) == ("1", "2", "10")
    assert class_values([chunked([True, False])], table=False) == ("false", "true")


def test_labels_that_differ_in_case_or_space_are_different_classes():
    assert len(class_values([chunked(["card", "Card", "card ", "card"])], table=False)) == 3


def test_an_empty_label_is_missing_and_the_word_none_is_a_class():
    values = chunked(["none", "None", "", None, "?", "NA"])
    assert class_values([values], table=False) == ("?", "NA", "None", "none")
    assert class_values([values], table=True) == ("None", "none")


@pytest.mark.parametrize("values", [["b", "a", None, "zzz", "b"], [1, 0, None, 7, 1], [1.0, 0.0, None, 7.0, 1.0]])
def test_class_ids_are_positions_in_classes_and_minus_one_where_unknown(values):
    names = ("0", "1") if not isinstance(values[0], str) else ("a", "b")
    ids = encode_targets(pa.table({"y": chunked(values)}), schema("multiclass", names))
    assert ids.tolist() == [1, 0, -1, -1, 1]
    assert ids.dtype == np.int64


def test_regression_targets_are_numbers_and_nan_where_missing():
    for values in ([1, None, 3], [1.0, float("nan"), 3.0], ["1", "", "3.0"], [1.0, float("inf"), 3.0]):
        targets = encode_targets(pa.table({"y": chunked(values)}), schema("regression"))
        assert targets.dtype == np.float32
        np.testing.assert_array_equal(targets, np.array([1, np.nan, 3], np.float32))
    with pytest.raises(DataError, match="must be a number for this task, got 'tall'"):
        encode_targets(pa.table({"y": chunked(["1", "tall", "2"])}), schema("regression"))


@pytest.mark.parametrize("as_text", [True, False])
def test_many_hot_rows_are_those_of_scikit_learn(as_text):
    rows = [["red", "round"], [], ["blue"], ["round", "blue", "red"], ["green"]]
    names = ("blue", "red", "round")
    values = ["; ".join(row) for row in rows] if as_text else rows
    column = chunked(values, pa.string() if as_text else pa.list_(pa.string()))
    hot = encode_targets(pa.table({"y": column}), schema("multilabel", names))
    known = [[name for name in row if name in names] for row in rows]
    np.testing.assert_array_equal(hot, MultiLabelBinarizer(classes=names).fit_transform(known))
    assert hot.dtype == np.float32


def test_several_columns_of_zero_and_one_are_many_hot_too():
    table = pa.table({"a": chunked([1, 0, None]), "b": chunked([True, True, False])})
    hot = encode_targets(table, schema("multilabel", ("a", "b"), label=("a", "b")))
    np.testing.assert_array_equal(hot, [[1, 1], [0, 1], [0, 0]])


@pytest.mark.parametrize(("task", "missing"), [("multiclass", -1), ("regression", np.nan), ("multilabel", 0)])
def test_rows_without_a_label_column_have_missing_targets(task, missing):
    targets = encode_targets(pa.table({}), schema(task, () if task == "regression" else ("a", "b")), num_rows=3)
    assert len(targets) == 3
    assert np.array_equal(targets, np.full_like(targets, missing), equal_nan=task == "regression")


def test_multilabel_text_is_detected_end_to_end(tmp_path):
    rows = "".join(f"a long enough text with number {k},{'red; round' if k % 2 else 'blue'}\n" for k in range(40))
    (tmp_path / "a.csv").write_text("text,tags\n" + rows)
    data = load(DataSpec(path=str(tmp_path / "a.csv")))
    assert (data.schema.task, data.schema.classes) == ("multilabel", ("blue", "red", "round"))
    odd = data.splits["test"].rows % 2
    np.testing.assert_array_equal(data.targets("test"), np.stack([1 - odd, odd, odd], 1))


def test_classes_of_test_that_training_lacks_are_minus_one(tmp_path):
    for split, names in (("train", "ab"), ("test", "abc")):
        rows = "".join(f"some text of {split} with number {k},{names[k % len(names)]}\n" for k in range(30))
        (tmp_path / f"{split}.csv").write_text("text,label\n" + rows)
    data = load(DataSpec(path=str(tmp_path)))
    assert data.schema.classes == ("a", "b")
    assert data.targets("test").tolist() == [0, 1, -1] * 10


def test_five_million_labels_are_encoded_in_seconds():
    names = pa.array([f"class{k}" for k in range(50)])
    part = pa.chunked_array(
        [names.take(pa.array(np.random.default_rng(k).integers(0, 50, 100_000))) for k in range(50)]
    )
    start = time.perf_counter()
    ids = encode_targets(pa.table({"y": part}), schema("multiclass", tuple(names.to_pylist())))
    assert len(ids) == 5_000_000
    assert time.perf_counter() - start < 10
