"""`evaluate` and `paired_bootstrap` against scikit-learn, scipy, closed forms and a plain bootstrap loop."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from regraft.errors import ConfigError
from regraft.phases.evaluate.bootstrap import group_sums, resample_weights, resamples_for
from regraft.phases.evaluate.metrics import evaluate, paired_bootstrap, statistics_for


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def classes_data(n=300, c=5, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, c, n)
    z = rng.normal(size=(n, c)) + 1.5 * np.eye(c)[y]
    p = softmax(np.round(z) if ties else z)
    return p, y, tuple(f"class {i}" for i in range(c))


def values(out):
    return {name: each["value"] for name, each in out.items()}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("c", [2, 3, 7])
def test_classification_metrics_equal_scikit_learn(c, ties):
    p, y, names = classes_data(c=c, ties=ties)
    got = values(evaluate(p, y, task="binary" if c == 2 else "multiclass", classes=names, resamples=5))
    hat = p.argmax(1)
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(y, hat), abs=1e-12)
    assert got["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, hat), abs=1e-12)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(y, hat, average="macro", zero_division=0)
    assert [got["macro_precision"], got["macro_recall"], got["macro_f1"]] == pytest.approx(
        [precision, recall, f1], abs=1e-12
    )
    assert got["nll"] == pytest.approx(sk.log_loss(y, p), abs=1e-12)
    if c == 2:
        assert got["auroc"] == pytest.approx(sk.roc_auc_score(y, p[:, 1]), abs=1e-12)
        assert got["average_precision"] == pytest.approx(sk.average_precision_score(y, p[:, 1]), abs=1e-12)
        assert got["brier"] == pytest.approx(sk.brier_score_loss(y, p[:, 1]), abs=1e-12)
    else:
        assert got["auroc"] == pytest.approx(sk.roc_auc_score(y, p, multi_class="ovr"), abs=1e-12)
        assert got["brier"] == pytest.approx(((p - np.eye(c)[y]) ** 2).sum(1).mean(), abs=1e-12)


def test_a_class_never_seen_nor_predicted_leaves_the_macro_mean_as_in_scikit_learn():
    p, y, names = classes_data(c=4)
    p = np.concatenate([p, np.zeros((len(p), 1))], axis=1)
    got = evaluate(p, y, task="multiclass", classes=(*names, "unseen"), resamples=5)
    assert got["macro_f1"]["value"] == pytest.approx(sk.f1_score(y, p.argmax(1), average="macro"), abs=1e-12)
    assert got["auroc"]["value"] is None
    assert got["auroc"]["reason"] == "class 'unseen' has no rows here"


def test_resampled_values_equal_those_of_the_drawn_rows():
    """The weighted form is the oracle-free trick of the module: here every resample is really drawn and scored."""
    p, y, names = classes_data(n=120, c=3, ties=True)
    p2, y2, names2 = classes_data(n=120, c=2, seed=3, ties=True)
    weights = np.concatenate(list(resample_weights(120, 8, 5)), axis=1)
    assert weights.sum(0).tolist() == [120.0] * 8
    multi = {k: v for s in statistics_for(p, y, task="multiclass", classes=names)[0] for k, v in s(weights).items()}
    binary = {k: v for s in statistics_for(p2, y2, task="binary", classes=names2)[0] for k, v in s(weights).items()}
    for r in range(8):
        rows = np.repeat(np.arange(120), weights[:, r].astype(int))
        assert multi["macro_f1"][r] == pytest.approx(sk.f1_score(y[rows], p[rows].argmax(1), average="macro"))
        assert multi["auroc"][r] == pytest.approx(sk.roc_auc_score(y[rows], p[rows], multi_class="ovr"))
        assert multi["nll"][r] == pytest.approx(sk.log_loss(y[rows], p[rows]))
        assert binary["auroc"][r] == pytest.approx(sk.roc_auc_score(y2[rows], p2[rows, 1]))
        assert binary["average_precision"][r] == pytest.approx(sk.average_precision_score(y2[rows], p2[rows, 1]))


def test_regression_metrics_equal_scikit_learn_and_scipy_also_on_drawn_rows():
    rng = np.random.default_rng(1)
    y = np.round(rng.normal(size=150), 1) + 100
    x = y + rng.normal(size=150).round(1)
    got = values(evaluate(x[:, None], y, task="regression", resamples=5))
    assert got["mse"] == pytest.approx(sk.mean_squared_error(y, x))
    assert got["rmse"] == pytest.approx(np.sqrt(sk.mean_squared_error(y, x)))
    assert got["mae"] == pytest.approx(sk.mean_absolute_error(y, x))
    assert got["r2"] == pytest.approx(sk.r2_score(y, x))
    assert got["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert got["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
    weights = next(iter(resample_weights(150, 4, 0)))
    drawn = statistics_for(x, y, task="regression", classes=())[0][0](weights)
    for r in range(4):
        rows = np.repeat(np.arange(150), weights[:, r].astype(int))
        assert drawn["spearman"][r] == pytest.approx(stats.spearmanr(x[rows], y[rows]).statistic)
        assert drawn["r2"][r] == pytest.approx(sk.r2_score(y[rows], x[rows]))


def test_multilabel_metrics_equal_scikit_learn():
    rng = np.random.default_rng(2)
    y = (rng.random((200, 4)) < 0.3).astype(np.float32)
    p = np.clip(0.5 * y + 0.6 * rng.random((200, 4)), 0, 1)
    got = values(evaluate(p, y, task="multilabel", classes=tuple("abcd"), resamples=5))
    hat = p >= 0.5
    assert got["micro_f1"] == pytest.approx(sk.f1_score(y, hat, average="micro"))
    assert got["macro_f1"] == pytest.approx(sk.f1_score(y, hat, average="macro"))
    assert got["subset_accuracy"] == pytest.approx(sk.accuracy_score(y, hat))
    assert got["hamming_loss"] == pytest.approx(sk.hamming_loss(y, hat))
    assert got["nll"] == pytest.approx(np.mean([sk.log_loss(y[:, c], p[:, c]) for c in range(4)]))


def test_a_constant_regression_target_gives_a_reason_instead_of_r2():
    got = evaluate(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0]), task="regression", resamples=20)
    assert got["r2"]["value"] is None
    assert "constant" in got["r2"]["reason"]
    assert got["mae"]["value"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("task", ["multiclass", "regression", "multilabel"])
def test_rows_without_a_target_are_left_out_and_counted(task):
    p, y, names = classes_data(n=60, c=3)
    if task == "regression":
        scores, targets, bad = p[:, 0], y.astype(float), np.nan
    elif task == "multilabel":
        scores, targets, bad = p, np.eye(3)[y], np.nan
    else:
        scores, targets, bad = p, y.copy(), -1
    targets[:7] = bad
    got = evaluate(scores, targets, task=task, classes=() if task == "regression" else names, resamples=30)
    clean = evaluate(scores[7:], targets[7:], task=task, classes=() if task == "regression" else names, resamples=30)
    assert got["n"]["value"] == 53
    assert got["excluded"]["value"] == 7
    assert {k: v for k, v in got.items() if k != "excluded"} == {k: v for k, v in clean.items() if k != "excluded"}


def test_no_row_with_a_target_gives_counts_only():
    p, _, names = classes_data(n=5, c=3)
    got = evaluate(p, np.full(5, -1), task="multiclass", classes=names)
    assert values(got) == {"n": 0, "excluded": 5, "resamples": 0}


def test_the_interval_of_accuracy_agrees_with_the_binomial_and_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    covered, widths = 0, []
    for seed in range(200):
        y = np.zeros(400, dtype=int)
        p = np.where((rng.random(400) < 0.8)[:, None], [0.9, 0.1], [0.1, 0.9])
        got = evaluate(p, y, task="binary", classes=("a", "b"), seed=seed, resamples=300)["accuracy"]
        covered += got["low"] <= 0.8 <= got["high"]
        widths.append(got["high"] - got["low"])
    assert 180 <= covered <= 199
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 400), rel=0.05)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    p, y, names = classes_data(n=100, c=3)
    first, again, other = (evaluate(p, y, task="multiclass", classes=names, seed=s, resamples=100) for s in (0, 0, 1))
    assert first == again
    assert first["nll"] != other["nll"]


def test_a_paired_interval_is_narrower_than_the_difference_of_two_separate_ones():
    p, y, names = classes_data(n=600, c=4)
    q = softmax(np.log(p) + 0.2 * np.random.default_rng(9).normal(size=p.shape))
    got = paired_bootstrap(p, q, y, task="multiclass", classes=names)
    a = evaluate(p, y, task="multiclass", classes=names)["accuracy"]
    b = evaluate(q, y, task="multiclass", classes=names)["accuracy"]
    assert got["difference"] == pytest.approx(a["value"] - b["value"])
    assert got["low"] <= got["difference"] <= got["high"]
    assert got["high"] - got["low"] < 0.5 * ((a["high"] - a["low"]) + (b["high"] - b["low"]))


def test_a_paired_difference_of_a_model_with_itself_is_exactly_zero():
    p, y, _ = classes_data()
    assert paired_bootstrap(p, p, y) == {"metric": "accuracy", "difference": 0.0, "low": 0.0, "high": 0.0}


def test_wrong_shapes_and_tasks_are_refused_in_one_sentence():
    with pytest.raises(
        ConfigError, match=r"^scores: must have shape \(3, 2\) for binary targets of 3 rows, got \(3, 4\)$"
    ):
        evaluate(np.ones((3, 4)), np.zeros(3, int), task="binary", classes=("a", "b"))
    with pytest.raises(ConfigError, match="got 'multi-class'; did you mean 'multiclass'"):
        evaluate(np.ones((3, 4)), np.zeros(3, int), task="multi-class", classes=("a", "b"))


def test_group_sums_equal_a_plain_loop():
    rng = np.random.default_rng(0)
    groups, weights = rng.integers(0, 4, 30), rng.random((30, 6))
    plain = np.stack([weights[groups == g].sum(0) for g in range(5)])
    np.testing.assert_allclose(group_sums(groups, 5, weights), plain)


def test_fewer_resamples_are_drawn_for_very_many_rows():
    assert [resamples_for(n) for n in (10, 40_000, 80_000, 10_000_000)] == [1000, 1000, 500, 200]


def test_five_thousand_rows_of_77_classes_with_1000_resamples_take_seconds():
    p, y, names = classes_data(n=5000, c=77)
    start = time.process_time()
    evaluate(p, y, task="multiclass", classes=names)
    assert time.process_time() - start < 20  # about 3 s of CPU on an idle laptop core
