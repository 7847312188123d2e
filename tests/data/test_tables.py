from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder, RobustScaler, StandardScaler

from regraft.data.encode import preprocessor_from_json
from regraft.data.tables import TablePreprocessor
from regraft.errors import DataError


def fitted(columns: dict[str, list], numeric: tuple[str, ...] = (), categorical: tuple[str, ...] = ()):
    return TablePreprocessor.fit(columns, numeric=numeric, categorical=categorical)


def adult(folder, file: str) -> dict[str, list[object]]:
    rows = list(csv.DictReader((folder / file).read_text().splitlines()))
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_numbers_are_robustly_scaled_and_smoothly_clipped():
    values = np.random.default_rng(0).normal(5, 3, 501)
    x = fitted({"a": values.tolist()}, numeric=("a",)).encode({"a": values.tolist()}).x
    z = RobustScaler().fit_transform(values[:, None])
    assert x.dtype == np.float32
    assert np.allclose(x, z / np.sqrt(1 + (z / 3) ** 2), atol=1e-6)


def test_features_stay_between_minus_3_and_3_whatever_the_tails_and_keep_their_order():
    values = np.random.default_rng(0).standard_cauchy(2000) * 1e6
    x = fitted({"a": values.tolist()}, numeric=("a",)).encode({"a": values.tolist()}).x[:, 0]
    assert np.abs(x).max() <= 3
    assert (np.diff(x[np.argsort(values)]) >= 0).all()


def test_a_mostly_constant_column_is_scaled_by_its_other_values():
    values = [0.0] * 95 + [1000.0, 2000.0, 3000.0, 4000.0, 5000.0]
    x = fitted({"a": values}, numeric=("a",)).encode({"a": [0.0, 1000.0, 5000.0]}).x[:, 0]
    assert x[0] == 0
    assert x[1] > 0.3  # by the range of the whole column it would be 0.2 of the largest
    assert x[2] < 3


def test_a_constant_or_empty_column_is_zero_and_finite():
    columns = {"a": [7.0] * 4, "b": [None] * 4}
    assert not fitted(columns, numeric=("a", "b")).encode({"a": [7.0, 99.0], "b": [None, 3.0]}).x[:, :2].any()


def test_a_missing_number_is_the_median_and_says_so():
    preprocessor = fitted({"a": [1.0, None, 3.0, 5.0], "b": [1, 2, 3, 4]}, numeric=("a", "b"))
    assert preprocessor.feature_names() == ["a", "a missing", "b"]
    x = preprocessor.encode({"a": [None, 3.0, float("nan"), ""], "b": [1, None, 2, 3]}).x
    assert x[:, 1].tolist() == [1, 0, 1, 1]
    assert x[:, 0].tolist() == [0, 0, 0, 0]  # the median of 1, 3, 5 is 3
    assert x[1, 2] == 0  # b had no gaps in training: the median alone


def test_categories_agree_with_sklearn_and_the_unseen_has_a_place_of_its_own():
    values = ["red", "blue", "red", "green", "blue", "red", "green"]
    preprocessor = fitted({"c": values}, categorical=("c",))
    x = preprocessor.encode({"c": values}).x
    expected = OneHotEncoder(categories=[["red", "blue", "green"]], sparse_output=False).fit_transform(
        [[v] for v in values]
    )
    assert np.array_equal(x[:, :3], expected)
    assert preprocessor.feature_names() == ["c = red", "c = blue", "c = green", "c missing", "c other 0"]
    odd = preprocessor.encode({"c": ["mauve", None, ""]}).x
    assert odd.argmax(1).tolist() == [4, 3, 3]
    assert (odd.sum(1) == 1).all()


def test_a_category_seen_once_trains_the_place_of_the_unseen():
    preprocessor = fitted({"c": ["a", "a", "b"]}, categorical=("c",))
    x = preprocessor.encode({"c": ["b", "never seen"]}).x
    assert np.array_equal(x[0], x[1])


def test_many_categories_share_a_bounded_number_of_places_the_same_in_every_process():
    values = [f"city {i % 500}" for i in range(1500)]
    preprocessor = fitted({"c": values}, categorical=("c",))
    assert preprocessor.width == 32 + 1 + 16
    x = preprocessor.encode({"c": values}).x
    assert (x.sum(1) == 1).all()
    assert (x[:, 33:].sum(0) > 0).all()  # every bucket is used
    # the published check value of CRC-32 is 0xCBF43926, which ends in 6
    assert preprocessor.encode({"c": ["123456789"]}).x.argmax() == 33 + 6


def test_one_and_one_point_zero_are_one_category():
    preprocessor = fitted({"c": [1, 1.0, "1", 2, 2]}, categorical=("c",))
    assert preprocessor.feature_names()[:2] == ["c = 1", "c = 2"]


def test_what_is_no_number_is_refused_with_its_row():
    preprocessor = fitted({"a": [1, 2]}, numeric=("a",))
    with pytest.raises(DataError, match=r"^row 1: column 'a' must hold finite numbers, got 'many'$"):
        preprocessor.encode({"a": [1, "many"]})
    with pytest.raises(DataError, match=r"^t.csv row 7: column 'a' must hold finite numbers, got inf$"):
        preprocessor.encode({"a": [float("inf")]}, names=["t.csv row 7"])
    with pytest.raises(DataError, match=r"^column 'a' is not in the data, which has 'b'$"):
        preprocessor.encode({"b": []})


def test_everything_fitted_survives_json():
    columns = {"a": [0.1, None, 1 / 3], "c": ["é", "é", None]}
    preprocessor = fitted(columns, numeric=("a",), categorical=("c",))
    again = preprocessor_from_json("", json.loads(json.dumps(preprocessor.to_json())))
    assert again == preprocessor
    assert np.array_equal(again.encode(columns).x, preprocessor.encode(columns).x)


def test_on_adult_the_features_are_not_worse_than_plain_standardising(shared_data):
    train, test = (adult(shared_data("adult"), f"{name}.csv") for name in ("train", "test"))
    train = {name: values[:2500] for name, values in train.items()}
    numeric = ("age", "fnlwgt", "education_num", "capital_gain", "capital_loss", "hours_per_week")
    categorical = tuple(c for c in train if c not in (*numeric, "income"))
    preprocessor = fitted(train, numeric, categorical)
    ours = [preprocessor.encode(part).x for part in (train, test)]
    plain = [np.array([part[c] for c in numeric], dtype=float).T for part in (train, test)]
    scaler = StandardScaler().fit(plain[0])
    hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(np.array([train[c] for c in categorical]).T)
    theirs = [
        np.hstack([scaler.transform(numbers), hot.transform(np.array([part[c] for c in categorical]).T)])
        for numbers, part in zip(plain, (train, test), strict=True)
    ]
    scores = [
        LogisticRegression(max_iter=2000).fit(x, train["income"]).score(t, test["income"]) for x, t in (ours, theirs)
    ]
    print(f"adult: logistic regression {scores[0]:.4f}, on standardised features {scores[1]:.4f}")
    assert ours[0].shape[1] == preprocessor.width == len(preprocessor.feature_names())
    assert scores[0] >= scores[1] - 0.002
