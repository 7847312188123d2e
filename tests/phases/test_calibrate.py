"""The calibrate phase: better where it can be, refused where it cannot, and judged on rows it was not fitted on."""

from __future__ import annotations

import json

import numpy as np
import pytest

from regraft.phases.calibrate import calibrate
from regraft.phases.evaluate.metrics import evaluate
from regraft.transforms.temperature import fit_temperature, sigmoid, softmax


def drawn(n, c, temperature, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    z = 2 * rng.normal(size=(n, c))
    y = np.minimum((rng.random(n)[:, None] > np.cumsum(softmax(z), 1)).sum(1), c - 1)
    return temperature * z + shift * np.arange(c), y


def test_overconfident_logits_are_calibrated_and_nothing_is_predicted_differently():
    logits, y = drawn(1500, 4, 3.0)
    chosen, section = calibrate(logits, y, task="multiclass")
    assert chosen.kind == "temperature"
    assert chosen.parameters["temperature"] == fit_temperature(logits, y)  # all rows, not a fold
    assert section["after"]["ece"] < 0.4 * section["before"]["ece"]
    assert section["after"]["nll"] < section["before"]["nll"]
    assert (chosen.probabilities(logits).argmax(1) == logits.argmax(1)).all()
    assert json.loads(json.dumps(section, allow_nan=False)) == section


def test_logits_that_are_calibrated_already_are_left_alone_and_the_report_says_so():
    # labels drawn from the stated probabilities: over many draws a fit on 4/5 loses slightly on the fifth left out
    kinds = [calibrate(*drawn(200, 3, 1.0, seed=s), task="multiclass") for s in range(12)]
    untouched = [section for chosen, section in kinds if chosen.kind == "identity"]
    assert len(untouched) >= 6
    assert untouched[0]["sentences"][0].startswith(
        "Probabilities are left as they are: the best fit has a cross-fitted NLL"
    )
    assert untouched[0]["before"] == untouched[0]["after"]


def test_the_numbers_after_are_cross_fitted_not_those_of_the_rows_fitted_on():
    logits, y = drawn(60, 3, 4.0, seed=5)
    chosen, section = calibrate(logits, y, task="multiclass")
    fitted_on = -np.log(chosen.probabilities(logits)[np.arange(60), y]).mean()
    assert section["after"]["nll"] > fitted_on


def test_a_shifted_threshold_of_a_binary_model_is_put_right_by_platt():
    logits, y = drawn(2000, 2, 1.0, shift=2.5)
    chosen, section = calibrate(logits, y, task="binary")
    assert chosen.kind == "platt"
    accuracy = (chosen.probabilities(logits).argmax(1) == y).mean()
    assert accuracy > (logits.argmax(1) == y).mean()
    assert "decision threshold" in " ".join(section["sentences"])


def test_platt_that_would_cost_accuracy_is_refused():
    # a rare class whose probabilities are right on average only by never predicting it: NLL gains, accuracy falls
    rng = np.random.default_rng(1)
    for seed in range(40):
        logits, y = drawn(80, 2, 1.0, seed=seed, shift=0.15 * rng.normal())
        chosen, section = calibrate(logits, y, task="binary")
        if any("refused" in s for s in section["sentences"]):
            assert chosen.kind != "platt"
            return
    pytest.fail("no seed gave a Platt fit that lowers accuracy, so the refusal was not exercised")


def test_multilabel_gets_one_temperature_for_each_label():
    rng = np.random.default_rng(0)
    z = 2 * rng.normal(size=(1500, 2))
    y = (rng.random((1500, 2)) < sigmoid(z)).astype(np.float32)
    chosen, section = calibrate(z * [1.0, 4.0], y, task="multilabel")
    assert chosen.kind == "label_temperature"
    assert section["after"]["ece"] < section["before"]["ece"]


def test_regression_states_a_width_whose_held_out_coverage_is_reported():
    rng = np.random.default_rng(0)
    predictions = rng.normal(size=(500, 1))
    chosen, section = calibrate(predictions, predictions[:, 0] + rng.normal(size=500), task="regression")
    assert chosen.kind == "residual"
    assert 0.85 < section["cross_fitted_coverage"] < 0.95
    low, high = chosen.interval(predictions)
    assert (high - low)[0] == pytest.approx(2 * 1.645, rel=0.15)


@pytest.mark.parametrize("rows", [0, 1, 19])
def test_a_validation_split_too_small_to_fit_on_leaves_everything_as_it_is(rows):
    logits, y = drawn(19, 3, 5.0)
    y[rows:] = -1
    chosen, section = calibrate(logits, y, task="multiclass")
    assert chosen.kind == "identity"
    assert f"{rows} labelled validation rows are too few" in section["sentences"][0]


def test_the_same_seed_gives_the_same_section():
    logits, y = drawn(200, 3, 2.0)
    assert calibrate(logits, y, task="multiclass", seed=3) == calibrate(logits, y, task="multiclass", seed=3)


def test_an_overfitted_model_of_real_digits_is_calibrated_on_rows_that_nothing_has_seen():
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    noisy = digits.data + 12 * np.random.default_rng(1).normal(size=digits.data.shape)
    x, y = noisy[order] / 16, digits.target[order]
    model = LogisticRegression(C=10.0, max_iter=3000).fit(x[:700], y[:700])
    chosen, section = calibrate(model.decision_function(x[700:1200]), y[700:1200], task="multiclass")
    test = [
        evaluate(scores, y[1200:], task="multiclass", classes=tuple("0123456789"), resamples=100)
        for scores in (
            softmax(model.decision_function(x[1200:])),
            chosen.probabilities(model.decision_function(x[1200:])),
        )
    ]
    assert chosen.parameters["temperature"] > 1.2
    assert test[1]["ece"]["value"] < 0.6 * test[0]["ece"]["value"]
    assert test[1]["nll"]["value"] < test[0]["nll"]["value"]
    assert test[1]["accuracy"] == test[0]["accuracy"]
    assert section["after"]["nll"] == pytest.approx(
        test[1]["nll"]["value"], rel=0.15
    )  # cross-fitted is close to unseen
