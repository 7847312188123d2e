"""Expected calibration error and reliability bins against closed forms and a loop over bins."""

from __future__ import annotations

import numpy as np
import pytest

from regraft.phases.evaluate.metrics import evaluate
from regraft.phases.evaluate.reliability import equal_mass, equal_width, reliability_bins


def two_columns(second):
    second = np.asarray(second, dtype=float)
    return np.stack([1 - second, second], axis=1)


def test_ece_of_four_points_is_the_closed_form():
    # top probabilities 0.95, 0.95 in one bin (one hit of two), 0.75 (hit) and 0.6 (miss) in bins of their own
    p = two_columns([0.95, 0.95, 0.75, 0.6])
    got = evaluate(p, np.array([1, 0, 1, 0]), task="binary", classes=("a", "b"), resamples=5)
    by_hand = 0.5 * abs(0.5 - 0.95) + 0.25 * abs(1 - 0.75) + 0.25 * abs(0 - 0.6)
    assert got["ece"]["value"] == pytest.approx(by_hand, abs=1e-12)
    # 15 equal-mass bins of four points hold one point each
    adaptive = (abs(1 - 0.95) + abs(0 - 0.95) + abs(1 - 0.75) + abs(0 - 0.6)) / 4
    assert got["ece_adaptive"]["value"] == pytest.approx(adaptive, abs=1e-12)


def test_ece_equals_a_loop_over_half_open_bins():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4) * 0.5, size=500)
    y = rng.integers(0, 4, 500)
    confidence, hit = p.max(1), p.argmax(1) == y
    plain = 0.0
    for low, high in zip(np.linspace(0, 1, 16)[:-1], np.linspace(0, 1, 16)[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            plain += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    got = evaluate(p, y, task="multiclass", classes=tuple("abcd"), resamples=5)
    assert got["ece"]["value"] == pytest.approx(plain, abs=1e-12)


def test_bins_are_closed_on_the_right_and_zero_falls_into_the_first():
    assert equal_width(np.array([0.0, 1 / 15, 1 / 15 + 1e-9, 1.0])).tolist() == [0, 0, 1, 14]


def test_equal_mass_bins_differ_in_size_by_at_most_one():
    sizes = np.bincount(equal_mass(np.random.default_rng(0).random(100)), minlength=15)
    assert sizes.max() - sizes.min() <= 1


def test_a_perfectly_calibrated_forecast_has_bins_on_the_diagonal():
    rng = np.random.default_rng(0)
    second = rng.random(200_000)
    bins = reliability_bins(two_columns(second), (rng.random(200_000) < second).astype(int), task="binary")
    filled = [b for b in bins if b["count"]]
    assert sum(b["count"] for b in bins) == 200_000
    assert all(b["low"] < b["confidence"] <= b["high"] for b in filled)
    assert max(abs(b["confidence"] - b["accuracy"]) for b in filled) < 0.02
    assert all(b["accuracy"] is None for b in bins if not b["count"])  # below one half no top probability can be


def test_multilabel_bins_count_every_label_of_every_row():
    p = np.array([[0.1, 0.9], [0.2, 0.7]])
    bins = reliability_bins(p, np.array([[0, 1], [0, 1]]), task="multilabel")
    assert sum(b["count"] for b in bins) == 4


def test_regression_has_no_bins():
    assert reliability_bins(np.ones(3), np.ones(3), task="regression") == []


def test_the_interval_of_the_calibration_error_holds_its_value_and_covers_the_truth_of_a_calibrated_model():
    # plain percentiles fail here: resampling adds noise, and a mean of absolute gaps only ever grows with it
    held, covered = 0, 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        second = 0.5 + 0.5 * rng.random(1500)
        y = (rng.random(1500) < second).astype(int)
        ece = evaluate(two_columns(second), y, task="binary", classes=("a", "b"), resamples=200, seed=seed)["ece"]
        held += ece["low"] <= ece["value"] <= ece["high"]
        covered += ece["low"] <= 0.03  # the error that 1,500 rows of a calibrated model show by chance alone
    assert held == 60
    assert covered >= 50
