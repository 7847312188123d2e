"""Penalties on weights: their gradients by hand, and what they do to a network."""

import copy

import pytest
import torch
import toy
from torch import nn

from regraft.core import Clock, compile, fit
from regraft.losses.supervised import cross_entropy
from regraft.techniques.regularise.weight_penalty import L1Penalty, L2Penalty, OrthogonalPenalty
from regraft.techniques.transfer.last_k import LastK


def gradients(technique, model, batch):
    stage = compile(toy.recipe(toy.stage(model=model)), [technique]).stages[0]
    stage.objective(model, batch, Clock(0, 1)).value.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.fixture
def batch():
    return {key: value[:16] for key, value in toy.blobs().items()}


def plain(model, batch):
    cross_entropy(model, batch, Clock(0, 1)).value.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.inventory("l2-penalty", by="technique L2Penalty")
@pytest.mark.parametrize(
    ("technique", "added"),
    [
        (L2Penalty(weight=0.1), lambda w: 0.2 * w),
        (L1Penalty(weight=0.1), lambda w: 0.1 * w.sign()),
    ],
)
def test_the_gradient_of_a_matrix_gains_that_of_the_penalty_and_a_vector_none(technique, added, batch):
    model = toy.mlp()
    before, after = plain(model, batch), gradients(technique, model, batch)
    for name, weight in model.named_parameters():
        gain = added(weight.detach()) if weight.ndim > 1 else torch.zeros_like(weight)
        torch.testing.assert_close(after[name] - before[name], gain, rtol=1e-4, atol=1e-6)


def test_what_is_frozen_is_not_penalised(batch):
    model = toy.mlp()
    recipe = compile(toy.recipe(toy.stage(model=model)), [LastK(blocks=0), L2Penalty(weight=1.0)])
    stage = recipe.stages[0]
    loss = stage.objective(model, batch, Clock(0, 1))
    assert loss.terms["l2"].item() == pytest.approx(model[-1].weight.square().sum().item(), rel=1e-6)


def test_orthogonality_is_nothing_for_orthonormal_rows_or_columns_and_by_hand_else():
    of = OrthogonalPenalty(weight=1.0).of
    wide = torch.linalg.qr(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))[0].T
    assert of(wide).item() == pytest.approx(0.0, abs=1e-9)
    assert of(wide.T).item() == pytest.approx(0.0, abs=1e-9)
    assert of(wide.reshape(4, 3, 2, 1)).item() == pytest.approx(0.0, abs=1e-9)
    assert of(torch.tensor([[2.0, 0.0], [1.0, 1.0]])).item() == pytest.approx((4 - 1) ** 2 + 2 * 2**2 + (2 - 1) ** 2)


def trained(*techniques, steps=150):
    model = copy.deepcopy(toy.mlp())
    fit(compile(toy.recipe(toy.stage(model=model, steps=steps)), techniques))
    return model


def distance(model):
    of = OrthogonalPenalty(weight=1.0).of
    return sum(of(m.weight.detach()).item() for m in model if isinstance(m, nn.Linear))


@pytest.mark.inventory("ortho-penalty", by="technique OrthogonalPenalty")
def test_with_the_penalty_layers_become_orthogonal():
    assert distance(trained(OrthogonalPenalty(weight=0.01))) < 0.1 * distance(trained())


@pytest.mark.inventory("l1-penalty", by="technique L1Penalty")
def test_the_share_of_weights_near_zero_rises_with_the_l1_penalty():
    def share(weight):
        model = trained(L1Penalty(weight=weight))
        return (
            torch.cat([m.weight.detach().flatten() for m in model if isinstance(m, nn.Linear)])
            .abs()
            .lt(1e-2)
            .float()
            .mean()
        )

    shares = [share(weight).item() for weight in (0.0, 1e-3, 1e-2)]
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.5


@pytest.mark.inventory("l2-penalty", by="technique L2Penalty")
def test_under_adam_a_penalty_is_not_a_decay():
    """Weights with small gradients shrink by the penalty as much as by the rate, far more than a decay of the same size takes."""
    from regraft.optim.optimizers import Adam, AdamW

    def final(optimizer, *techniques):
        model = toy.mlp()
        with torch.no_grad():
            model[0].weight[:, 0] = 0.5  # an input that is always zero
        data = toy.blobs()
        data["x"][:, 0] = 0.0
        stage = toy.stage(model=model, steps=60, data=data, update=toy.descent(optimizer))
        fit(compile(toy.recipe(stage), techniques))
        return model[0].weight[:, 0].detach().mean().item()

    penalised = final(Adam(lr=0.01), L2Penalty(weight=0.005))
    decayed = final(AdamW(lr=0.01, weight_decay=0.01))
    assert decayed == pytest.approx(0.5 * (1 - 1e-4) ** 60, rel=1e-5)
    assert penalised < 0.25
