"""Averages against a plain mean, and what they are for: a noisy loss."""

from __future__ import annotations

import pytest
import torch
from toy import adam, blobs, mlp, recipe, sgd, stage, weights

from regraft.core import Hook, compile, fit
from regraft.losses.supervised import cross_entropy
from regraft.techniques.regularise.weight_average import WeightAverage, moving_rate


class Path(Hook):
    """Keeps the weights of every step."""

    def __init__(self):
        self.path = []

    def on_step(self, run, loss):
        self.path.append(weights(run.stage.model))


def path_and_end(technique, steps=20):
    path = Path()
    chosen = stage(steps=steps)
    fit(compile(recipe(chosen), [technique]), hooks=[path])
    return path.path, weights(chosen.model)


@pytest.mark.parametrize(("last", "count"), [(0.25, 5), (1.0, 20), (0.05, 1)])
def test_a_uniform_average_is_the_mean_of_the_last_weights(last, count):
    path, end = path_and_end(WeightAverage(kind="uniform", last=last))
    torch.testing.assert_close(end, torch.stack(path[-count:]).mean(0), rtol=1e-5, atol=1e-7)


def test_an_exponential_average_is_the_recursion_it_is_defined_by():
    path, end = path_and_end(WeightAverage(decay=0.6))
    expected = path[0]
    for count, point in enumerate(path[1:], start=1):
        rate = min(0.6, (1 + count) / (10 + count))
        expected = rate * expected + (1 - rate) * point
    torch.testing.assert_close(end, expected, rtol=1e-5, atol=1e-6)
    assert moving_rate(0.6, 0) == 0.1


def test_training_itself_does_not_see_the_average():
    averaged, _ = path_and_end(WeightAverage(decay=0.9))
    plain = Path()
    fit(recipe(stage(steps=20)), hooks=[plain])
    assert all(torch.equal(a, b) for a, b in zip(averaged, plain.path, strict=True))


def test_a_second_run_of_the_same_recipe_starts_a_new_average():
    chosen = stage(steps=5)
    compiled = compile(recipe(chosen), [WeightAverage(kind="uniform", last=1.0)])
    fit(compiled)
    path = Path()
    fit(compiled, hooks=[path])
    torch.testing.assert_close(weights(chosen.model), torch.stack(path.path).mean(0), rtol=1e-5, atol=1e-7)


def test_with_a_high_rate_to_the_end_the_average_has_the_lower_loss():
    held_out = blobs(512, seed=5)

    def loss(techniques):
        model = mlp()
        fit(compile(recipe(stage(model, steps=150, data=blobs(64), update=sgd(0.5, micro=1))), techniques))
        with torch.no_grad():
            return float(cross_entropy(model, held_out, None).value)

    assert loss([WeightAverage(kind="uniform", last=0.5)]) < loss([])


def test_frozen_parameters_are_not_averaged():
    model = mlp()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    fit(compile(recipe(stage(model, steps=5, update=adam(0.1))), [WeightAverage()]))
    assert torch.equal(before, model[0].weight)
