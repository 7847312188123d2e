"""The loss around a point: directions, slices and sharpness, against Hessians made in full and losses known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev
from toy import recipe, sgd, stage

from regraft.core import compile, fit
from regraft.optim.landscape import (
    across,
    epsilon_sharpness,
    filter_normalised,
    gradient,
    hessian_times,
    largest_eigenvalue,
    line,
    noise_rise,
    plane,
)
from regraft.techniques.regularise.gsam import GSAM
from regraft.techniques.regularise.sam import SAM
from regraft.techniques.regularise.weight_average import WeightAverage


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny():
    """(loss, weights) of a small network in float64."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw(p.numel()), dtype=torch.float64))
    x, y = torch.randn(20, 3, generator=draw(1), dtype=torch.float64), torch.arange(20) % 2
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return (lambda w: F.cross_entropy(functional_call(model, dict(w), (x,)), y)), weights


def full_hessian(loss, weights):
    """(P, P), by torch.func."""
    blocks = jacrev(jacrev(loss))(weights)
    rows = [torch.cat([blocks[a][b].reshape(weights[a].numel(), -1) for b in weights], 1) for a in weights]
    return torch.cat(rows)


def test_every_filter_of_a_direction_is_as_long_as_the_weights_and_vectors_stay():
    weights = {"kernel": torch.randn(5, 3, 2, 2, generator=draw()), "matrix": torch.randn(4, 6), "bias": torch.randn(4)}
    found = filter_normalised(weights, draw(3))
    for name in ("kernel", "matrix"):
        torch.testing.assert_close(found[name].flatten(1).norm(dim=1), weights[name].flatten(1).norm(dim=1))
    assert not found["bias"].any()
    again = filter_normalised(weights, draw(3))
    assert all(torch.equal(found[name], again[name]) for name in weights)
    second = across(filter_normalised(weights, draw(4)), found)
    assert sum(float((second[n] * found[n]).sum()) for n in weights) == pytest.approx(0.0, abs=1e-4)


def test_slices_of_a_quadratic_are_parabolas():
    centre = {"w": torch.tensor([[1.0, 2.0], [0.0, -1.0]])}

    def loss(w):
        return (w["w"] - centre["w"]).square().sum()

    one, two = filter_normalised(centre, draw()), filter_normalised(centre, draw(1))
    length = float(one["w"].square().sum())
    at = [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert line(loss, centre, one, at) == pytest.approx([a * a * length for a in at])
    square = plane(loss, centre, (one, two), at)
    inner = float((one["w"] * two["w"]).sum())
    other = float(two["w"].square().sum())
    expected = [[x * x * length + 2 * x * y * inner + y * y * other for x in at] for y in at]
    np.testing.assert_allclose(square, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.inventory("sharpness", by="regraft landscape RUN")
def test_hessian_products_and_the_largest_eigenvalue_are_those_of_the_full_hessian():
    loss, weights = tiny()
    full = full_hessian(loss, weights)
    vector = {name: torch.randn(w.shape, generator=draw(9), dtype=torch.float64) for name, w in weights.items()}
    flat = torch.cat([v.flatten() for v in vector.values()])
    ours = torch.cat([v.flatten() for v in hessian_times(loss, weights, vector).values()])
    torch.testing.assert_close(ours, full @ flat, rtol=1e-9, atol=1e-12)
    exact = float(torch.linalg.eigvalsh(full)[-1])
    assert largest_eigenvalue(loss, weights, steps=100, generator=draw()) == pytest.approx(exact, rel=1e-9)
    assert largest_eigenvalue(loss, weights, steps=12, generator=draw()) == pytest.approx(exact, rel=1e-3)
    flat_now = torch.cat([w.flatten() for w in weights.values()])
    shapes = [w.shape for w in weights.values()]

    def of_flat(vector):
        parts = vector.split([s.numel() for s in shapes])
        return loss({n: part.reshape(s) for n, part, s in zip(weights, parts, shapes, strict=True)})

    autograd = torch.autograd.functional.hessian(of_flat, flat_now)  # a second oracle
    assert float(torch.linalg.eigvalsh(autograd)[-1]) == pytest.approx(exact, rel=1e-9)


@pytest.mark.inventory("sharpness", by="regraft landscape RUN")
def test_sharpness_of_a_quadratic_is_known():
    """At distance d from the minimum of c/2 |w|^2: c (d rho + rho^2 / 2) for the worst point, c/2 share^2 |w|^2 for noise."""
    weights = {"w": torch.tensor([[3.0, 4.0]], dtype=torch.float64)}

    def loss(w):
        return 2.0 * w["w"].square().sum() / 2

    assert epsilon_sharpness(loss, weights, 0.1) == pytest.approx(2.0 * (5 * 0.1 + 0.005))
    assert largest_eigenvalue(loss, weights, steps=5, generator=draw()) == pytest.approx(2.0)
    rises = noise_rise(loss, weights, share=0.2, draws=4000, generator=draw())
    assert rises == pytest.approx(0.2**2 * 25.0, rel=0.2)  # the mean of the linear term is 0
    torch.testing.assert_close(gradient(loss, weights)["w"], 2.0 * weights["w"])


def test_a_weight_that_the_loss_does_not_see_has_gradient_and_curvature_zero():
    weights = {"w": torch.ones(2, 2), "idle": torch.ones(3)}
    assert not gradient(lambda w: w["w"].sum(), weights)["idle"].any()
    assert not any(v.any() for v in hessian_times(lambda w: w["w"].sum(), weights, weights).values())


# ---- minima of training, on the handwritten digits


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    rows = np.random.default_rng(0).permutation(len(data.data))[:300]
    return {"x": torch.tensor(data.data[rows] / 8 - 1).float(), "y": torch.tensor(data.target[rows])}


def sharpness(techniques, data):
    """(worst rise, largest eigenvalue, mean rise) of the minimum that training ends in."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    fit(compile(recipe(stage(model, steps=400, data=data, update=sgd(0.3))), techniques))
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(w):
        return F.cross_entropy(functional_call(model, dict(w), (data["x"],)), data["y"])

    return (
        epsilon_sharpness(loss, weights, 0.5),
        largest_eigenvalue(loss, weights, steps=20, generator=draw()),
        noise_rise(loss, weights, share=0.5, draws=20, generator=draw()),
    )


@pytest.fixture(scope="module")
def plain(digits):
    return sharpness([], digits)


@pytest.mark.inventory("sam", by="technique SAM")
@pytest.mark.inventory("gsam", by="technique GSAM")
@pytest.mark.parametrize("technique", [SAM(rho=0.2), GSAM(rho=0.2, alpha=0.2)], ids=["SAM", "GSAM"])
def test_the_minimum_is_flatter_than_that_of_plain_descent_by_three_measures(digits, plain, technique):
    assert all(ours < 0.8 * theirs for ours, theirs in zip(sharpness([technique], digits), plain, strict=True))


@pytest.mark.inventory("swa", by="technique WeightAverage: {kind: uniform}")
def test_averaged_weights_are_flatter_where_training_keeps_moving(digits):
    """A fifth of the labels is wrong, so the loss stays noisy to the end and the last weights lie beside the middle."""
    wrong = torch.rand(300, generator=draw()) < 0.2
    y = torch.where(wrong, torch.randint(10, (300,), generator=draw(1)), digits["y"])
    noisy = digits | {"y": y}
    last, averaged = (sharpness(used, noisy) for used in ([], [WeightAverage(kind="uniform", last=0.5)]))
    assert averaged[0] < 0.5 * last[0]  # at the worst point nearby
    assert averaged[2] < 0.9 * last[2]  # under noise; the largest eigenvalue is about the same


@pytest.mark.inventory("sam", by="technique SAM")
def test_a_step_of_sam_is_two_passes(digits):
    def passes(techniques):
        model, counted = nn.Sequential(nn.Linear(64, 10)), []
        model.register_forward_hook(lambda *_: counted.append(1))
        fit(compile(recipe(stage(model, steps=7, data=digits, update=sgd(0.1))), techniques))
        return len(counted)

    assert (passes([]), passes([SAM()]), passes([GSAM()])) == (7, 14, 14)
