"""Heads against scikit-learn, and the comparison of feature sets against plain refits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from regraft.core.seeding import generator
from regraft.phases.choose.fit import Head, Problem, Standardised, fit_head, in_row_space, standardised
from regraft.phases.choose.gram import HeldOut, block_gram, leave_one_out, one_hot


def data(n: int = 200, width: int = 12, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = generator(seed)
    centres = 1.2 * torch.randn(classes, width, generator=g)
    y = torch.randint(classes, (n,), generator=g)
    return centres[y] + torch.randn(n, width, generator=g), y


EXACT: dict[str, Any] = {"max_iterations": 500, "tolerance": 1e-9}


def fitted(x: torch.Tensor, y: torch.Tensor, problem: Problem, *, l2: float) -> Head:
    return fit_head(standardised([x]), y, problem, l2=l2, **EXACT)


@pytest.mark.parametrize("l2", [0.3, 0.01])
def test_softmax_head_is_that_of_scikit_learn(l2):
    x, y = data()
    ours = fitted(x, y, Problem(task="multiclass", num_outputs=4), l2=l2)
    standard = ((x - ours.mean) / ours.deviation).numpy().astype(np.float64)
    theirs = LogisticRegression(C=1 / (l2 * len(x)), max_iter=5000, tol=1e-10).fit(standard, y.numpy())
    expected = theirs.predict_proba(standard)
    # L-BFGS stops when the loss moves by less than 1e-7, which leaves probabilities a little apart at a weak penalty
    np.testing.assert_allclose(ours.logits(x).softmax(-1).numpy(), expected, atol=3e-3)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_a_fit_on_a_few_rows_at_a_time_is_the_same_fit(monkeypatch, task):
    x, y = data(n=700)
    targets = y if task == "multiclass" else torch.stack([y == c for c in range(4)], 1).float()
    whole = fitted(x, targets, Problem(task=task, num_outputs=4), l2=0.01)
    monkeypatch.setattr("regraft.phases.choose.fit.LOGITS", 1)  # 256 rows at once
    monkeypatch.setattr("regraft.phases.choose.fit.ROWS", 99)
    in_parts = fitted(x, targets, Problem(task=task, num_outputs=4), l2=0.01)
    torch.testing.assert_close(in_parts.logits(x), whole.logits(x), rtol=1e-3, atol=1e-3)


def test_multilabel_head_is_one_logistic_regression_a_label():
    x, y = data()
    labels = torch.stack([y == 0, y >= 2], 1).float()
    ours = fitted(x, labels, Problem(task="multilabel", num_outputs=2), l2=0.05)
    standard = ((x - ours.mean) / ours.deviation).numpy().astype(np.float64)
    for column in range(2):
        theirs = LogisticRegression(C=1 / (0.05 * len(x)), max_iter=5000, tol=1e-10).fit(
            standard, labels[:, column].numpy()
        )
        got = ours.logits(x)[:, column].sigmoid().numpy()
        np.testing.assert_allclose(got, theirs.predict_proba(standard)[:, 1], atol=2e-4)


def test_regression_head_is_ridge_with_a_free_intercept():
    x, _ = data()
    y = x @ torch.arange(12.0) + 5 + torch.randn(200, generator=generator(3))
    ours = fitted(x, y, Problem(task="regression", num_outputs=1), l2=0.1)
    standard = ((x - ours.mean) / ours.deviation).numpy().astype(np.float64)
    theirs = Ridge(alpha=0.1 * len(x)).fit(standard, y.numpy())
    np.testing.assert_allclose(ours.logits(x)[:, 0].numpy(), theirs.predict(standard), rtol=1e-4, atol=1e-3)


def test_a_class_without_examples_is_ruled_out_and_keeps_its_place():
    x, y = data(classes=3)
    head = fitted(x, y, Problem(task="multiclass", num_outputs=5), l2=0.01)
    assert head.logits(x).shape == (200, 5)
    assert set(head.logits(x).argmax(1).tolist()) <= {0, 1, 2}


def test_constant_features_change_nothing():
    x, y = data()
    wide = torch.cat([x, torch.full((200, 3), 7.0)], 1)
    plain, more = (fitted(v, y, Problem(task="multiclass", num_outputs=4), l2=0.01) for v in (x, wide))
    moved = wide + torch.cat([torch.zeros(12), torch.full((3,), 0.01)])
    assert (more.logits(moved).argmax(1) == plain.logits(x).argmax(1)).float().mean() > 0.99


def test_the_row_space_gives_the_fit_of_the_whole_space():
    x, y = data(n=40, width=90)
    mean, deviation = x.mean(0), x.std(0, correction=0)
    rotated = in_row_space((x - mean) / deviation)
    assert rotated.shape == (40, 40)
    outputs = []
    for features in ((x - mean) / deviation, rotated):
        head = fit_head(Standardised.plain(features), y, Problem(task="multiclass", num_outputs=4), l2=0.05, **EXACT)
        outputs.append(head.logits(features).softmax(-1))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-3)


def test_leave_one_out_is_what_refitting_without_each_row_gives():
    x, y = data(n=30, width=5, classes=3)
    gram, columns = block_gram(x), one_hot(y, Problem(task="multiclass", num_outputs=3))
    strength = 0.1
    (ours,) = leave_one_out(gram, columns, [strength])
    alpha = strength * float(gram.diagonal().mean())
    centred = (columns - columns.mean(0)).double()
    for row in (0, 11, 29):
        keep = torch.arange(30) != row
        weights = torch.linalg.solve(gram.double()[keep][:, keep] + alpha * torch.eye(29).double(), centred[keep])
        expected = gram.double()[row, keep] @ weights + columns.mean(0)
        torch.testing.assert_close(ours[row].double(), expected, rtol=1e-4, atol=1e-4)


def test_a_combination_scores_like_its_features_side_by_side():
    x, y = data(n=160, width=20)
    parts = {(0, "mean"): x[:, :8], (1, "mean"): x[:, 8:]}
    problem, one, both = Problem(task="multiclass", num_outputs=4), [(0, "mean")], [(0, "mean"), (1, "mean")]
    together = HeldOut({(0, "mean"): x}, y, problem, [one]).best(one)
    apart = HeldOut(parts, y, problem, [one, both])
    assert apart.best([(0, "mean"), (1, "mean")]) == pytest.approx(
        together, abs=0.026
    )  # one row of 40: deviations are floored apart
    assert apart.best([(0, "mean")]) < together
