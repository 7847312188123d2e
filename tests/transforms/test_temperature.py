"""Temperature, Platt scaling and residual widths against optimisers, scikit-learn and counting."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar

from regraft.errors import RunError
from regraft.transforms.temperature import (
    COLDEST,
    Calibration,
    fit_label_temperatures,
    fit_platt,
    fit_residuals,
    fit_temperature,
    sigmoid,
    softmax,
)


def drawn(n=4000, c=5, temperature=2.5, seed=0):
    """Logits that are `temperature` times too large for the labels drawn from them."""
    rng = np.random.default_rng(seed)
    z = 2 * rng.normal(size=(n, c))
    p = softmax(z)
    y = (rng.random(n)[:, None] > np.cumsum(p, 1)).sum(1)
    return temperature * z, np.minimum(y, c - 1)


def nll(logits, y):
    return -np.log(softmax(logits)[np.arange(len(y)), y]).mean()


def test_the_temperature_that_made_the_logits_is_found():
    logits, y = drawn()
    assert fit_temperature(logits, y) == pytest.approx(2.5, rel=0.05)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 6.0])
def test_the_temperature_is_the_minimum_that_a_scalar_search_finds(temperature):
    logits, y = drawn(n=300, temperature=temperature, seed=4)
    found = minimize_scalar(lambda t: nll(logits / t, y), bounds=(0.05, 40), method="bounded", options={"xatol": 1e-10})
    assert fit_temperature(logits, y) == pytest.approx(found.x, rel=1e-5)


def test_logits_that_are_always_right_stop_at_the_coldest_temperature():
    assert fit_temperature(np.eye(3)[[0, 1, 2]], np.arange(3)) == COLDEST


@given(st.floats(0.02, 50), st.integers(0, 10))
def test_a_temperature_never_changes_the_prediction(temperature, seed):
    logits = np.random.default_rng(seed).normal(size=(50, 4)).round(3)
    calibrated = Calibration(kind="temperature", task="multiclass", parameters={"temperature": temperature})
    assert (calibrated.probabilities(logits).argmax(1) == logits.argmax(1)).all()


def test_platt_equals_scikit_learn_where_scikit_learn_is_exact():
    from sklearn.calibration import _SigmoidCalibration

    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    f = 3 * rng.normal(size=400) + 4 * (y - 0.4)
    theirs = _SigmoidCalibration().fit(f, y)
    assert fit_platt(f, y) == pytest.approx((theirs.a_, theirs.b_), rel=1e-3)


def test_platt_is_the_minimum_that_a_general_optimiser_finds():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 60)
    f = 20 * (rng.normal(size=60) + y)
    smooth = np.where(y == 1, (y.sum() + 1) / (y.sum() + 2), 1 / ((1 - y).sum() + 2))

    def loss(t):
        p = 1 / (1 + np.exp(t[0] * f / 20 + t[1]))
        return -(smooth * np.log(p) + (1 - smooth) * np.log(1 - p)).sum()

    found = minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-7}).x
    assert fit_platt(f, y) == pytest.approx((found[0] / 20, found[1]), rel=1e-4)


def test_platt_stays_finite_on_separable_margins_because_the_targets_are_smoothed():
    a, b = fit_platt(np.array([-3.0, -2, 2, 3]), np.array([0, 0, 1, 1]))
    assert -3 < a < 0
    assert abs(b) < 1e-6


def test_each_label_gets_the_temperature_that_its_logits_need():
    rng = np.random.default_rng(0)
    z = 2 * rng.normal(size=(6000, 3))
    y = (rng.random((6000, 3)) < sigmoid(z)).astype(float)
    y[:, 2] = 0
    assert fit_label_temperatures(z * [1.0, 3.0, 2.0], y) == pytest.approx([1.0, 3.0, 1.0], rel=0.1)


def test_the_residual_width_covers_the_stated_share_of_new_rows():
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(300):
        width = fit_residuals(np.zeros(50), rng.standard_t(3, size=50))["half_width"]
        inside.append((np.abs(rng.standard_t(3, size=200)) <= width).mean())
    assert 0.89 < np.mean(inside) < 0.93  # at least 0.9, at most 0.9 + 1 / 51


def test_too_few_residuals_promise_nothing_and_survive_json():
    few = Calibration(kind="residual", task="regression", parameters=fit_residuals(np.zeros(5), np.ones(5)))
    assert few.parameters["half_width"] == math.inf
    again = Calibration.from_json(json.loads(json.dumps(few.to_json(), allow_nan=False)))
    assert again.interval(np.zeros(2))[1].tolist() == [math.inf, math.inf]


@pytest.mark.parametrize(
    "calibration",
    [
        Calibration(kind="identity", task="multiclass"),
        Calibration(kind="temperature", task="multiclass", parameters={"temperature": 1.7}),
        Calibration(kind="platt", task="binary", parameters={"a": -0.8, "b": 0.1}),
        Calibration(kind="label_temperature", task="multilabel", parameters={"temperatures": [1.0, 2.0]}),
    ],
)
def test_a_calibration_read_back_gives_the_same_probabilities(calibration):
    logits = np.random.default_rng(0).normal(size=(20, 2))
    again = Calibration.from_json(json.loads(json.dumps(calibration.to_json())))
    assert (again.probabilities(logits) == calibration.probabilities(logits)).all()
    if calibration.task != "multilabel":
        assert again.probabilities(logits).sum(1) == pytest.approx(np.ones(20))


def test_platt_with_minus_one_and_zero_is_the_softmax_of_the_logits():
    logits = np.random.default_rng(0).normal(size=(20, 2))
    neutral = Calibration(kind="platt", task="binary", parameters={"a": -1.0, "b": 0.0})
    np.testing.assert_allclose(neutral.probabilities(logits), softmax(logits), rtol=1e-12)


def test_another_format_is_refused_in_one_sentence():
    with pytest.raises(RunError, match=r"format must be 'regraft\.calibration/1', got None"):
        Calibration.from_json({"kind": "identity"})


def test_huge_logits_do_not_overflow():
    assert softmax(np.array([[1e4, -1e4]])).tolist() == [[1.0, 0.0]]
    assert sigmoid(np.array([1e4, -1e4])).tolist() == [1.0, 0.0]
