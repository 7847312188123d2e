"""What is detected from columns alone, on small tables whose meaning is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from regraft.config.data import DataSpec
from regraft.data.profile import profile, sample_of
from regraft.data.read import load
from regraft.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))


RANDOM = np.random.default_rng(0)
ROWS = 200
SENTENCES = [
    f"{'why is it that' if k % 3 else 'please tell me how'} the thing with number {k} does not work"
    for k in range(ROWS)
]
OTHERS = [f"another sentence that says {k} things about it" for k in range(ROWS)]
AB = ["no", "yes"] * (ROWS // 2)


def schema_of(tmp_path, options=None, **columns):
    path = tmp_path / "data.parquet"
    pd.DataFrame(columns).to_parquet(path)
    return load(DataSpec(path=str(path), **(options or {}))).schema


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("premise", "hypothesis"), ("premise", "hypothesis")),
        (("question1", "question2"), ("question1", "question2")),
        (("sentence_A", "sentence_B"), ("sentence_A", "sentence_B")),
        (("Description", "Title"), ("Title", "Description")),
        (("notes", "text"), ("text",)),
        (("remark", "longer"), ("remark",)),
    ],
)
def test_text_columns_are_chosen_as_pairs_or_by_name_or_by_length(tmp_path, names, chosen):
    found = schema_of(tmp_path, **{names[0]: SENTENCES, names[1]: OTHERS}, label=AB)
    assert found.inputs == chosen
    assert set(found.ignored) == set(names) - set(chosen)


@pytest.mark.parametrize("name", ["label", "Label", "category", "intent", "sentiment", "species", "y"])
def test_the_label_is_found_by_name_wherever_it_stands(tmp_path, name):
    assert schema_of(tmp_path, **{name: AB}, text=SENTENCES, colour=["red", "blue"] * 100).label == (name,)


def test_without_a_known_name_the_label_is_the_last_column_with_few_values(tmp_path):
    found = schema_of(
        tmp_path, kind=AB, text=SENTENCES, verdict=["a", "b", "c", "d"] * 50, code=[f"x{k}" for k in range(ROWS)]
    )
    assert found.label == ("verdict",)


def test_an_identifier_is_never_the_label(tmp_path):
    with pytest.raises(DataError, match="no column looks like a label"):
        schema_of(tmp_path, text=SENTENCES, id=list(range(ROWS)), code=[f"x{k}" for k in range(ROWS)])


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (AB, "binary"),
        ([True, False] * 100, "binary"),
        ([0, 1] * 100, "binary"),
        ([1.0, 2.0] * 100, "binary"),
        ([1, 2, 3, 4] * 50, "multiclass"),
        (list(range(40)) * 5, "multiclass"),
        ([0.5, 1.25] * 100, "regression"),
        (RANDOM.integers(10, 99, ROWS).tolist(), "regression"),
        ([["a", "b"], ["b"]] * 100, "multilabel"),
        (["a;b", "b"] * 100, "multilabel"),
        (["a;b", "c"] * 100, "multilabel"),
    ],
)
def test_the_task_follows_from_the_values_of_the_label(tmp_path, values, task):
    assert schema_of(tmp_path, text=SENTENCES, label=values).task == task


def test_few_whole_numbers_in_a_table_are_called_ambiguous_and_can_be_a_score(tmp_path):
    columns = {"acid": RANDOM.normal(size=ROWS), "sugar": RANDOM.normal(size=ROWS), "quality": [3, 4, 5, 6, 7] * 40}
    found = schema_of(tmp_path, **columns)
    assert found.task == "multiclass"
    assert any("ambiguous" in reason and "--task regression" in reason for reason in found.reasons)
    given = schema_of(tmp_path, {"task": "regression"}, **columns)
    assert given.task == "regression"
    assert not any("task" in reason for reason in given.reasons)


def test_several_label_columns_are_multilabel_and_must_be_zero_and_one(tmp_path):
    columns = {"text": SENTENCES, "rude": [0, 1] * 100, "loud": [True, False] * 100, "kind": [1, 2] * 100}
    found = schema_of(tmp_path, {"label": ["rude", "loud"]}, **columns)
    assert (found.task, found.classes) == ("multilabel", ("rude", "loud"))
    with pytest.raises(DataError, match="each must hold 0 and 1, but 'kind' holds other values"):
        schema_of(tmp_path, {"label": ["rude", "kind"]}, **columns)


def test_columns_of_a_table_that_are_no_inputs_are_named_with_the_reason(tmp_path):
    found = schema_of(
        tmp_path,
        row=list(range(ROWS)),
        customer_id=[f"c{k % 20}" for k in range(ROWS)],
        ticket=[f"t{k}" for k in range(ROWS)],
        date=[f"2020-01-{k % 28 + 1:02d}" for k in range(ROWS)],
        source=["web"] * ROWS,
        nothing=[None] * ROWS,
        size=RANDOM.normal(size=ROWS),
        colour=["red", "blue"] * 100,
        flag=[True, False] * 100,
        label=AB,
    )
    assert found.inputs == ("size", "colour", "flag")
    assert found.numeric == ("size", "flag")
    said = {name: why.split(";")[0].split(" (")[0] for name, why in found.ignored.items()}
    assert said == {
        "row": "a row number or identifier",
        "customer_id": "looks like a group",
        "ticket": "a value of its own in nearly every row",
        "date": "looks like a time",
        "source": "the same value everywhere",
        "nothing": "no values",
    }


def test_names_of_people_do_not_make_a_table_text(tmp_path):
    people = [f"Brown{k}, Mr. Owen" for k in range(ROWS)]
    assert schema_of(tmp_path, name=people, age=RANDOM.normal(size=ROWS), label=AB).modality == "table"
    assert schema_of(tmp_path, {"modality": "text", "text": "name"}, name=people, label=AB).inputs == ("name",)


def test_what_is_given_is_taken_and_not_explained(tmp_path):
    found = schema_of(
        tmp_path,
        {"text": "remark", "label": "kind", "task": "multiclass"},
        text=SENTENCES,
        remark=OTHERS,
        kind=AB,
        label=AB,
    )
    assert (found.inputs, found.label, found.task) == (("remark",), ("kind",), "multiclass")
    assert all("cut from train" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": "size"}, "--text: the column 'size' holds numbers, not text"),
        ({"text": ["text", "remark", "label"]}, "one column, or two for pairs, got 3"),
        ({"text": "text", "image": "remark"}, "--text and --image are both given"),
        ({"image": "text"}, "'text' holds neither images nor paths of images"),
        ({"modality": "image"}, "no column holds images"),
        ({"group": "grup"}, "no column called 'grup'"),
        ({"label": "remark"}, "has 200 classes in 200 rows; give another --label"),
        ({"label": "size", "task": "multiclass"}, "holds numbers that are not whole; try --task regression"),
        ({"label": ["label", "size"], "task": "binary"}, "takes one label column, but 2 are given"),
    ],
)
def test_what_contradicts_the_data_is_refused(tmp_path, options, message):
    with pytest.raises(DataError, match=message) as caught:
        schema_of(tmp_path, options, text=SENTENCES, remark=OTHERS, size=RANDOM.normal(size=ROWS), label=AB)
    assert "\n" not in str(caught.value)


def test_a_sample_of_a_long_table_is_small_and_spread():
    import pyarrow as pa

    table = pa.table({"k": pa.chunked_array([np.arange(50_000) + 50_000 * part for part in range(10)])})
    sample = sample_of(table)
    assert sample.num_rows <= 20_000
    assert sample.column("k")[0].as_py() == 0
    assert sample.column("k")[-1].as_py() == 499_999
    assert profile(sample, "k").consecutive
