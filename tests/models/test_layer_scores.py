"""Scores of layers, against numpy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import toy
from torch import nn

from regraft.models.layer_scores import angle_scores, best, fisher_scores, gradient_scores, layers_of


def gradients_of_each(model, batch, samples):
    """(samples, parameters of each name) gradients of each example's own loss, one backward pass each."""
    model.eval()
    found = {name: [] for name, _ in model.named_parameters()}
    for row in range(samples):
        model.zero_grad()
        nn.functional.cross_entropy(model(batch["x"][row : row + 1]), batch["y"][row : row + 1]).backward()
        for name, p in model.named_parameters():
            found[name].append(p.grad.flatten().double().clone())
    model.zero_grad(set_to_none=True)
    return {name: torch.stack(rows) for name, rows in found.items()}


def batch_of(stage, samples):
    parts = stage.source.batches(stage.model)
    two = [next(parts), next(parts)]
    return {key: torch.cat([part[key] for part in two])[:samples] for key in ("x", "y")}


@pytest.mark.inventory("layer-selection-metric", by="regraft layers")
@pytest.mark.parametrize("by", ["block", "module"])
def test_fisher_and_gradient_of_a_layer_are_those_of_its_examples_one_by_one(by):
    stage = toy.stage(toy.mlp())
    layers = layers_of(stage.model, by=by)
    each = gradients_of_each(stage.model, batch_of(stage, 40), 40)
    fisher = fisher_scores(stage, layers, samples=40)
    slope = gradient_scores(stage, layers, samples=40)
    weights = {name: p.detach().flatten().double() for name, p in stage.model.named_parameters()}
    for layer, information, relative in zip(layers, fisher, slope, strict=True):
        rows = torch.cat([each[name] for name in layer.parameters], dim=1)
        own = torch.cat([weights[name] for name in layer.parameters])
        assert information.value == pytest.approx(float(rows.square().mean()), rel=1e-5)
        assert relative.value == pytest.approx(float(rows.mean(0).norm() / own.norm()), rel=1e-4)
        assert information.count == relative.count == own.numel()


@pytest.mark.inventory("layer-selection-metric", by="regraft layers --metric angle")
def test_the_angle_is_that_of_numpy_and_zero_where_nothing_moved():
    model = toy.mlp()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        model[2].weight.add_(0.1 * torch.randn(model[2].weight.shape))
        model[4].bias.zero_()
        model[4].weight.mul_(-2)
    scores = {
        score.layer.name: score.value
        for score in angle_scores(before, dict(model.named_parameters()), layers_of(model))
    }
    assert scores["0"] == 0.0
    for name in ("2", "4"):
        u, v = (
            np.concatenate([state[f"{name}.{own}"].detach().double().numpy().ravel() for own in ("weight", "bias")])
            for state in (before, dict(model.named_parameters()))
        )
        cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
        assert scores[name] == pytest.approx(np.degrees(np.arccos(cosine)), rel=1e-9)
    assert scores["4"] > 150


def test_tiny_angles_are_not_lost_in_rounding():
    layer = layers_of(nn.Sequential(nn.Linear(1, 2, bias=False)), by="module")
    (score,) = angle_scores({"0.weight": torch.tensor([[1.0], [0.0]]).double()},
                            {"0.weight": torch.tensor([[1.0], [1e-9]]).double()}, layer)  # fmt: skip
    assert score.value == pytest.approx(math.degrees(1e-9), rel=1e-6)


def test_weights_that_were_zero_have_no_angle_and_are_not_chosen():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    scores = angle_scores(before, dict(model.named_parameters()), layers_of(model))
    assert [score.value for score in scores] == [None, None]
    assert best(scores, 2) == []


def test_a_layer_that_was_not_there_before_has_no_angle():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = {name: p.detach().clone() for name, p in model[:1].named_parameters()}
    scores = angle_scores(before, dict(model.named_parameters()), layers_of(model, by="module"))
    assert [score.value for score in scores] == [0.0, None]


@pytest.mark.inventory("layer-freeze-rule", by="regraft layers")
def test_layers_are_listed_from_the_input_to_the_head_whatever_the_order_of_registration():
    model = toy.bert_graft(blocks=3, depths=(3,))
    names = [layer.name for layer in layers_of(model)]
    assert names == ["stem", *(f"backbone.encoder.layer.{i}" for i in range(3)), "head"]
    modules = layers_of(model, by="module")
    assert [layer.depth for layer in modules] == sorted(layer.depth for layer in modules)
    assert sorted(n for layer in modules for n in layer.parameters) == sorted(n for n, _ in model.named_parameters())
