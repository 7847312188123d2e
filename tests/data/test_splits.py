"""Properties that every cut must have, on random data and on files."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from regraft.config.data import DataSpec
from regraft.data.read import load
from regraft.data.splits import cut, cut_late, limited, units_of_group, units_of_inputs
from regraft.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))


def write(path, **columns):
    pd.DataFrame(columns).to_csv(path, index=False)
    return str(path)


def texts(count):
    return [f"this is the text with number {k}" for k in range(count)]


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(-1, 5), min_size=1, max_size=200),
    share=st.floats(0.05, 0.45),
    seed=st.integers(0, 9),
    groups=st.integers(1, 60),
)
def test_a_cut_never_parts_a_unit_nor_empties_a_class(labels, share, seed, groups):
    labels = np.array(labels)
    units = np.random.default_rng(seed).integers(0, groups, len(labels))
    for keys in (None, units):
        mask = cut(labels, keys, share=share, seed=seed)
        alone = np.arange(len(labels)) if keys is None else keys
        assert not set(alone[mask]) & set(alone[~mask])
        if keys is None:
            assert not mask[labels < 0].any()
            for label in set(labels[labels >= 0].tolist()):
                count, taken = (labels == label).sum(), mask[labels == label].sum()
                assert taken == min(count // 2, max(round(count * share), 2))
        np.testing.assert_array_equal(mask, cut(labels, keys, share=share, seed=seed))


def test_units_of_one_row_are_cut_like_no_units():
    labels = np.random.default_rng(0).integers(0, 4, 500)
    assert (
        cut(labels, np.arange(500)[::-1].copy(), share=0.2, seed=3).sum() == cut(labels, None, share=0.2, seed=3).sum()
    )


def test_another_seed_gives_another_cut():
    labels = np.zeros(100, int)
    assert (cut(labels, None, share=0.2, seed=0) != cut(labels, None, share=0.2, seed=1)).any()


def test_a_huge_unit_stays_in_training():
    units = np.r_[np.zeros(500, int), np.arange(1, 501)]
    mask = cut(np.zeros(1000, int), units, share=0.2, seed=0)
    assert not mask[:500].any()
    assert abs(mask.sum() - 200) <= 1


def test_a_cut_by_time_takes_the_latest_and_parts_no_moment():
    times = np.random.default_rng(0).integers(0, 30, 300).astype(float)
    times[5] = np.nan
    mask = cut_late(times, share=0.2)
    assert times[mask].min() > np.nanmax(times[~mask])
    assert 0.2 * 300 <= mask.sum() < 0.2 * 300 + 30
    assert not mask[5]
    with pytest.raises(DataError, match="one and the same time"):
        cut_late(np.ones(9), share=0.2)


@settings(max_examples=40, deadline=None)
@given(labels=st.lists(st.integers(-1, 6), min_size=1, max_size=300), limit=st.integers(1, 300))
@example(labels=[0, 1, 1, 1, 1, -1], limit=3)
def test_a_limited_sample_has_the_size_and_the_shares(labels, limit):
    labels = np.array(labels)
    chosen = limited(labels, limit=limit, seed=0)
    assert len(chosen) == min(limit, len(labels))
    assert (np.diff(chosen) > 0).all()
    values, counts = np.unique(labels, return_counts=True)
    if len(values) <= limit < len(labels):
        for value, count in zip(values, counts, strict=True):
            taken = (labels[chosen] == value).sum()
            assert taken >= 1
            assert taken <= max(np.ceil(count * limit / len(labels)), 1)


def test_equal_texts_are_one_unit_whatever_their_case_and_spaces():
    import pyarrow as pa

    batches = [
        pa.RecordBatch.from_pydict({"x": part})
        for part in (["Hello  World", "other", None], ["hello world ", "", None, "other"])
    ]
    assert units_of_inputs(batches).tolist() == [0, 1, 2, 0, 4, 5, 1]
    assert units_of_inputs([pa.RecordBatch.from_pydict({"x": ["a", "b"], "y": [1, 1]})]) is None
    pairs = pa.RecordBatch.from_pydict({"x": ["a", "b", "a"], "y": ["b", "a", "b"]})
    assert units_of_inputs([pairs]).tolist() == [0, 1, 0]


def test_rows_without_a_group_are_units_of_their_own():
    import pyarrow as pa

    assert units_of_group(pa.chunked_array([["u1", None, "u2"], ["u1", None]])).tolist() == [0, 1, 2, 0, 4]


@pytest.mark.inventory("split-strat", by="regraft adapt, regraft train")
def test_missing_splits_are_cut_in_the_same_shares_of_each_class(tmp_path):
    labels = ["a"] * 700 + ["b"] * 250 + ["c"] * 49 + ["d"]
    data = load(DataSpec(path=write(tmp_path / "a.csv", text=texts(1000), label=labels)))
    for split, share in (("test", 0.2), ("valid", 0.08)):
        counts = np.bincount(data.targets(split), minlength=4)
        np.testing.assert_allclose(counts, np.array([700, 250, 49, 0]) * share, atol=1.5)
    assert (data.targets("train") == 3).sum() == 1
    rows = np.concatenate([part.rows for part in data.splits.values()])
    assert sorted(rows.tolist()) == list(range(1000))
    assert all((np.diff(part.rows) > 0).all() for part in data.splits.values())
    assert sum("is cut from train" in reason for reason in data.schema.reasons) == 2


def test_the_rows_of_a_split_are_those_of_the_file(tmp_path):
    data = load(DataSpec(path=write(tmp_path / "a.csv", text=texts(100), label=["a", "b"] * 50)))
    for name, part in data.splits.items():
        assert part.take("text").to_pylist() == [texts(100)[row] for row in part.rows]
        index = np.array([4, 0, 4, 2])
        assert part.take("text", index).to_pylist() == [texts(100)[row] for row in part.rows[index]]
        batches = [batch.column("text").to_pylist() for batch in part.batches(["text"], size=7)]
        assert list(chain.from_iterable(batches)) == part.column("text").to_pylist()
        kept = data.without({name: np.array([1, 3])}).splits[name]
        assert kept.rows.tolist() == np.delete(part.rows, [1, 3]).tolist()
        assert kept.take("text").to_pylist() == [texts(100)[row] for row in kept.rows]


def test_duplicates_do_not_leak_over_a_cut_of_ours(tmp_path):
    doubled = [text.upper() if k % 2 else text for text in texts(100) for k in range(4)]
    data = load(DataSpec(path=write(tmp_path / "a.csv", text=doubled, label=["a", "b"] * 200)))
    sides = [{text.lower() for text in part.take("text").to_pylist()} for part in data.splits.values()]
    assert all(not left & right for k, left in enumerate(sides) for right in sides[k + 1 :])
    assert min(map(len, sides)) > 5


def test_duplicate_rows_of_a_real_table_do_not_leak(shared_data):
    data = load(DataSpec(path=str(shared_data("wine_quality_red")), task="regression"))
    rows = [set(zip(*data.raw(name, np.arange(len(part))).values(), strict=True)) for name, part in data.splits.items()]
    assert all(not left & right for k, left in enumerate(rows) for right in rows[k + 1 :])


@pytest.mark.inventory("split-grouped", by="data.main.group, --group")
def test_a_group_stands_on_one_side_only(tmp_path):
    people = [f"p{k % 37}" for k in range(600)]
    path = write(tmp_path / "a.csv", text=texts(600), label=["a", "b", "c"] * 200, person=people)
    data = load(DataSpec(path=path, group="person"))
    sides = [set(part.take("person").to_pylist()) for part in data.splits.values()]
    assert all(not left & right for k, left in enumerate(sides) for right in sides[k + 1 :])
    assert sum(map(len, sides)) == 37
    assert data.schema.group == "person"


@pytest.mark.inventory("split-time", by="data.main.time, --time")
@pytest.mark.parametrize("kind", ["number", "iso", "german", "zone"])
def test_later_rows_are_never_in_training(tmp_path, kind):
    order = np.random.default_rng(0).permutation(200)
    days = pd.Timestamp("2020-12-20") + pd.to_timedelta(order, unit="D")
    forms = {
        "number": order,
        "iso": days.strftime("%Y-%m-%d"),
        "german": days.strftime("%d.%m.%Y"),
        "zone": days.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    path = write(tmp_path / "a.csv", text=texts(200), label=["a", "b"] * 100, when=forms[kind])
    data = load(DataSpec(path=path, time="when"))
    moments = {name: order[part.rows] for name, part in data.splits.items()}
    assert moments["train"].max() < moments["valid"].min() <= moments["valid"].max() < moments["test"].min()
    assert {name: len(part) for name, part in data.splits.items()} == {"train": 144, "valid": 16, "test": 40}


def test_a_time_that_is_none_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", text=texts(40), label=["a", "b"] * 20, when=["early", "late"] * 20)
    with pytest.raises(DataError, match="'when' holds no dates, times or numbers"):
        load(DataSpec(path=path, time="when"))


def test_given_splits_are_left_alone_and_only_the_missing_one_is_cut(shared_data):
    data = load(DataSpec(path=str(shared_data("banking77"))))
    assert data.given == {"train", "test"}
    assert data.splits["test"].rows.tolist() == list(range(3080))
    assert np.bincount(data.targets("valid"), minlength=77).min() >= 2
    whole = load(DataSpec(path=str(shared_data("sst2"))))
    assert whole.given == {"train", "valid", "test"}
    assert [len(part) for part in whole.splits.values()] == [6920, 872, 1821]


def test_the_limit_cuts_training_rows_only(shared_data):
    data = load(DataSpec(path=str(shared_data("banking77")), limit=500))
    full = load(DataSpec(path=str(shared_data("banking77"))))
    assert len(data.splits["train"]) == 500
    assert set(data.splits["train"].rows) <= set(full.splits["train"].rows)
    assert data.splits["valid"].rows.tolist() == full.splits["valid"].rows.tolist()
    assert len(set(data.targets("train"))) == 77


def test_data_too_small_to_cut_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", text=texts(4), label=["a", "b", "c", "d"])
    with pytest.raises(DataError, match="too few rows or groups to cut off a test split"):
        load(DataSpec(path=path, label="label"))
