"""GSAM's gradient by hand, SAM as its special case, and the gap it narrows."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from toy import blobs, mlp, recipe, sgd, stage, weights

from regraft.core import compile, fit
from regraft.losses.supervised import cross_entropy
from regraft.techniques.regularise.gsam import GSAM, across
from regraft.techniques.regularise.sam import SAM


def gradients(technique):
    """What the update makes of a batch, the model, and the batch."""
    chosen = stage(update=sgd(0.1))
    (compiled,) = compile(recipe(chosen), [technique]).stages
    update, batch = compiled.step(compiled).updates["all"], next(chosen.source.batches(chosen.model))
    loss = update.gradients(lambda part: cross_entropy(chosen.model, part, None), batch)
    return torch.cat([p.grad.flatten() for p in chosen.model.parameters()]), chosen.model, batch, loss


def gradient(model, batch):
    grads = torch.autograd.grad(cross_entropy(model, batch, None).value, list(model.parameters()))
    return torch.cat([g.flatten() for g in grads])


def test_the_gradient_is_that_of_algorithm_1():
    ours, model, batch, loss = gradients(GSAM(rho=0.1, alpha=0.3))
    plain, climbed = gradient(model, batch), copy.deepcopy(model)
    nn.utils.vector_to_parameters(weights(model) + 0.1 * plain / plain.norm(), climbed.parameters())
    worst = gradient(climbed, batch)
    unit = worst / worst.norm()
    vertical = plain - (plain @ unit) * unit
    torch.testing.assert_close(ours, worst - 0.3 * vertical, rtol=1e-4, atol=1e-6)
    gap = cross_entropy(climbed, batch, None).value - cross_entropy(model, batch, None).value
    torch.testing.assert_close(loss.terms["gap"], gap.detach(), rtol=1e-4, atol=1e-6)


def test_without_alpha_it_is_sam():
    assert torch.equal(gradients(GSAM(rho=0.1, alpha=0))[0], gradients(SAM(rho=0.1))[0])


def test_what_lies_across_is_at_right_angles():
    draw = torch.Generator().manual_seed(0)
    one, other = ([torch.randn(3, 4, generator=draw), torch.randn(5, generator=draw)] for _ in range(2))
    part = across(one, other)
    assert sum((p * o).sum() for p, o in zip(part, other, strict=True)).item() == pytest.approx(0.0, abs=1e-5)
    assert not torch.allclose(part[0], one[0])


@pytest.mark.inventory("gsam", by="technique GSAM")
def test_the_gap_falls_in_training_and_is_lower_than_with_sam():
    def gaps(alpha):
        chosen = stage(model=mlp(), steps=300, update=sgd(0.1), data=blobs(n=64))
        return [record["gap"] for record in fit(compile(recipe(chosen), [GSAM(rho=0.2, alpha=alpha)])).history]

    ours, sams = gaps(0.4), gaps(0.0)
    assert sum(ours[-20:]) / 20 < 0.5 * max(ours)
    assert sum(ours) < 0.97 * sum(sams)
