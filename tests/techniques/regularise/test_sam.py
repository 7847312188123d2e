"""SAM's gradient, its exact restore, and the flatter minimum it finds."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from toy import blobs, mlp, recipe, sgd, stage, weights

from regraft.core import compile, fit
from regraft.losses.supervised import cross_entropy
from regraft.optim.ascent import ascent
from regraft.techniques.regularise.sam import SAM


def prepared(technique):
    chosen = stage(update=sgd(0.1))
    (compiled,) = compile(recipe(chosen), [technique]).stages
    update = compiled.step(compiled).updates["all"]
    return chosen.model, update, next(chosen.source.batches(chosen.model))


def gradient(model, batch):
    grads = torch.autograd.grad(cross_entropy(model, batch, None).value, list(model.parameters()))
    return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_gradient_is_that_of_the_climbed_point_and_the_weights_are_back(adaptive):
    model, update, batch = prepared(SAM(rho=0.1, adaptive=adaptive))
    before = weights(model)
    update.gradients(lambda part: cross_entropy(model, part, None), batch)
    ours = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert torch.equal(before, weights(model))
    g = gradient(model, batch)
    w = before if adaptive else torch.ones_like(before)
    point = before + 0.1 * w.square() * g / (w * g).norm()  # Foret eq. 2; Kwon eq. 8 with T_w = diag |w|
    climbed = copy.deepcopy(model)
    nn.utils.vector_to_parameters(point, climbed.parameters())
    torch.testing.assert_close(ours, gradient(climbed, batch), rtol=1e-4, atol=1e-6)


def test_the_weights_are_restored_when_the_second_pass_fails():
    model, update, batch = prepared(SAM(rho=0.1))
    before, calls = weights(model), []

    def fails_second(part):
        calls.append(weights(model))
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return cross_entropy(model, part, None)

    with pytest.raises(RuntimeError, match="out of memory"):
        update.gradients(fails_second, batch)
    assert not torch.equal(calls[1], before)
    assert torch.equal(before, weights(model))


def test_a_zero_gradient_does_not_move_and_gives_no_nan():
    steps = ascent([torch.ones(3)], [torch.zeros(3)], 0.1)
    assert torch.equal(steps[0], torch.zeros(3))


def test_the_reported_loss_is_that_of_the_weights_not_of_the_climbed_point():
    model, update, batch = prepared(SAM(rho=0.5))
    loss = update.gradients(lambda part: cross_entropy(model, part, None), batch)
    assert torch.equal(loss.value, cross_entropy(model, batch, None).value.detach())


@pytest.mark.inventory("sam", by="technique SAM")
def test_the_loss_around_the_minimum_rises_less_than_after_plain_descent():
    def rise(techniques):
        chosen = stage(mlp(), steps=300, data=blobs(96), update=sgd(0.2))
        fit(compile(recipe(chosen), techniques))
        batch = blobs(96)
        with torch.no_grad():
            here = cross_entropy(chosen.model, batch, None).value
        params = list(chosen.model.parameters())
        grads = torch.autograd.grad(cross_entropy(chosen.model, batch, None).value, params)
        with torch.no_grad():
            for p, e in zip(params, ascent(params, grads, 0.3), strict=True):
                p.add_(e)
            return float(cross_entropy(chosen.model, batch, None).value - here)

    assert rise([SAM(rho=0.2)]) < 0.7 * rise([])
