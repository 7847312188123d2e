"""Choosing heights and penalties: what is known beforehand is found, and the fast ways give what the plain ones do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regraft.core.seeding import generator
from regraft.losses.supervised import per_example_losses
from regraft.phases.choose.features import Features
from regraft.phases.choose.fit import Problem, standardised
from regraft.phases.choose.probe import DECADES, FittedReads, choose_heights, choose_penalty, fitted, fitted_on_path

THREE = Problem(task="multiclass", num_outputs=3)


def layered(rows: int = 400, noise: float = 1.0, seed: int = 0) -> tuple[Features, Tensor]:
    """Three depths of which only the middle one knows the class."""
    g = generator(seed)
    y = torch.randint(3, (rows,), generator=g)
    features: Features = {}
    for depth in range(3):
        for pool in ("mean", "max"):
            signal = 2.0 * torch.eye(3)[y] if depth == 1 else torch.zeros(rows, 3)
            wide = torch.cat([signal, torch.zeros(rows, 5)], 1)
            features[depth, pool] = wide + noise * torch.randn(rows, 8, generator=g)
    return features, y


def test_the_depth_that_knows_the_class_is_found():
    features, y = layered()
    choice = choose_heights(features, y, THREE)
    assert max(choice.curve, key=lambda point: point["score"])["depth"] == 1
    assert 1 in choice.chosen.depths
    assert choice.last.reads == ((2, "mean"),)
    only = choose_heights(features, y, THREE, depths="last")
    assert only.chosen == only.last
    assert not only.compared


@pytest.mark.parametrize("noise", [1.5, 3.0])
def test_the_penalty_out_of_fold_is_about_the_best_on_fresh_rows(noise):
    features, y = layered(240, noise)
    fresh, answers = layered(4000, noise, seed=1)
    heights = choose_heights(features, y, THREE).chosen
    rows = heights.of(THREE, features)

    def loss(l2: float) -> float:
        return float(
            per_example_losses(fitted(heights, rows, y, THREE, l2=l2).logits(fresh), answers, THREE.task).mean()
        )

    found = choose_penalty(features, heights.reads, y, THREE, folds=5, seed=0)
    assert loss(found) <= 1.1 * min(loss(l2) for l2 in (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3))


def test_a_path_ends_with_the_head_that_its_penalty_gives_from_scratch():
    features, y = layered(600, 2.0)
    held, answers = layered(600, 2.0, seed=1)
    heights = choose_heights(features, y, THREE).chosen
    rows = heights.of(THREE, features)

    def loss(one: FittedReads) -> float:
        return float(per_example_losses(one.logits(held), answers, "multiclass").mean())

    found = fitted_on_path(heights, rows, y, THREE, loss=loss, seed=0)
    scratch = {l2: fitted(heights, rows, y, THREE, l2=l2) for l2 in DECADES}
    assert found.l2 == min(scratch, key=lambda l2: loss(scratch[l2]))
    torch.testing.assert_close(found.logits(held), scratch[found.l2].logits(held), rtol=0.05, atol=0.05)


def test_blocks_of_rows_are_standardised_by_the_first():
    g = generator(0)
    first, second = torch.randn(50, 6, generator=g) * 3 + 1, torch.randn(20, 6, generator=g)
    both = standardised([first[:, :2], first[:, 2:]], [second[:, :2], second[:, 2:]])
    assert both.x.shape == (70, 6)
    torch.testing.assert_close(both.first(50).x.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(both.first(50).x.std(0, correction=0), torch.ones(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(both.x[50:], (second - both.mean) / both.deviation)


def test_a_matrix_in_bf16_gives_about_the_head_of_fp32():
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor does not multiply bf16")
    features, y = layered(60_000, 2.0)
    heads = []
    for half in (False, True):
        rows = standardised(list(features.values()), half=half)
        assert rows.x.dtype == (torch.bfloat16 if half else torch.float32)
        heights = choose_heights(features, y, THREE, depths="last").chosen
        heads.append(fitted(heights, rows, y, THREE, l2=0.01).head)
    torch.testing.assert_close(heads[0].weight, heads[1].weight, rtol=0, atol=5e-3)
