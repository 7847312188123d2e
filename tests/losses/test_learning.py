"""What a loss does to a network that is trained with it, against the same training without it."""

import numpy as np
import pytest
import torch
import toy
from torch import nn

from regraft.config.parse import parse_one
from regraft.core import compile, fit
from regraft.core.seeding import generator
from regraft.losses.criterion import objective_of, question_of
from regraft.optim.optimizers import SGD
from regraft.phases.evaluate.reliability import ece_statistics, stated_and_observed


def trained(node, data, task, model, *, steps=300, update=None):
    outputs = list(model.modules())[-1].out_features
    objective = objective_of(parse_one(node, "loss"), question_of(task, data["y"], outputs))
    stage = toy.stage(model=model, steps=steps, data=data, objective=objective, update=update or toy.adam())
    fit(compile(toy.recipe(stage), []))
    return model.eval()


def ece(probabilities, targets):
    observed = stated_and_observed(probabilities, targets, "multiclass")
    return float(ece_statistics(*observed, len(targets))(np.ones((len(targets), 1)))["ece"][0])


@pytest.mark.inventory("label-smoothing", by="train.loss: {CrossEntropy: {label_smoothing: 0.1}}")
def test_smoothing_makes_a_network_less_sure_and_changes_its_calibration_error():
    """64 examples with a third of the labels drawn anew: without smoothing the network learns them by heart."""
    data, held = toy.blobs(n=64), toy.blobs(n=2000, seed=5)
    for part in (data, held):
        new = torch.rand(len(part["y"]), generator=generator(3)) < 0.33
        part["y"] = torch.where(new, torch.randint(4, part["y"].shape, generator=generator(4)), part["y"])
    found = []
    for smoothing in (0.0, 0.2):
        model = trained({"CrossEntropy": {"label_smoothing": smoothing}}, data, "multiclass", toy.mlp())
        found.append(model(held["x"]).softmax(-1).detach().double().numpy())
    sure = [p.max(1).mean() for p in found]
    errors = [ece(p, held["y"].numpy()) for p in found]
    assert sure[1] < sure[0] - 0.05
    assert errors[1] < errors[0] - 0.02


@pytest.mark.inventory("focal", by="train.loss: {Focal: {class_weights: balanced}}")
def test_a_focal_loss_finds_more_of_a_rare_class():
    """3 of 100 examples are of class 1, which lies one deviation away."""
    draw = generator(0)
    y = (torch.rand(2000, generator=draw) < 0.03).long()
    x = torch.randn(2000, 4, generator=draw) + 1.5 * y[:, None]

    def recall(node):
        model = trained(node, {"x": x, "y": y}, "binary", toy.mlp(dim=4, width=8, classes=2), steps=200)
        return float((model(x).argmax(1) == 1)[y == 1].float().mean())

    plain = recall("CrossEntropy")
    assert recall({"Focal": {"class_weights": "balanced"}}) > plain + 0.1
    assert recall({"Focal": {"gamma": 2.0}}) >= plain


@pytest.mark.inventory("mse-loss", by="train.loss: MSE")
def test_squared_error_finds_the_least_squares_solution():
    draw = generator(1)
    x = torch.randn(64, 3, generator=draw)
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.3 + 0.1 * torch.randn(64, generator=draw)
    model = nn.Linear(3, 1)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    one_batch = toy.Tensors({"x": x, "y": y}, batch_size=64)
    objective = objective_of(parse_one("MSE", "loss"), question_of("regression", y))
    stage = toy.stage(model, steps=500, objective=objective, update=toy.descent(SGD(lr=0.1, momentum=0.0)))
    fit(
        compile(toy.recipe(toy.stage(model, steps=500, objective=objective, update=stage.update, source=one_batch)), [])
    )
    exact = np.linalg.lstsq(np.c_[x.numpy(), np.ones(64)].astype(np.float64), y.numpy().astype(np.float64), rcond=None)[
        0
    ]
    found = np.r_[model.weight.detach().numpy()[0], model.bias.detach().numpy()]
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.inventory("mae-loss", by="train.loss: MAE")
def test_an_outlier_moves_what_the_absolute_error_learns_less_than_what_the_square_does():
    """A constant is fitted with and without one target of 100."""

    def constant(node, y):
        model = nn.Linear(1, 1)
        nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
        data = {"x": torch.zeros(len(y), 1), "y": y}
        objective = objective_of(parse_one(node, "loss"), question_of("regression", y))
        source = toy.Tensors(data, batch_size=len(y))
        fit(
            compile(
                toy.recipe(toy.stage(model, steps=1500, objective=objective, source=source, update=toy.sgd(0.02))), []
            )
        )
        return model.bias.item()

    y = torch.linspace(-1, 1, 21)
    spoiled = torch.cat([y, torch.tensor([100.0])])
    moved = {node: abs(constant(node, spoiled) - constant(node, y)) for node in ("MAE", "MSE")}
    assert moved["MSE"] == pytest.approx(100 / 22, rel=0.01)
    assert moved["MAE"] < 0.1 * moved["MSE"]


@pytest.mark.inventory("rank-pairwise", by="train.loss: PairwiseRank")
@pytest.mark.inventory("rank-listwise", by="train.loss: ListwiseRank")
@pytest.mark.parametrize(
    "node", ["PairwiseRank", {"PairwiseRank": {"form": "hinge"}}, "ListwiseRank", {"ListwiseRank": {"form": "listnet"}}]
)
def test_ndcg_rises_with_a_ranking_loss(node):
    """Relevance from 0 to 4 hangs on the inputs; NDCG as scikit-learn counts it, over all examples as one list."""
    from sklearn.metrics import ndcg_score

    draw = generator(2)
    x = torch.randn(256, 8, generator=draw)
    y = (2 + x[:, 0] - x[:, 1] * x[:, 2]).round().clamp(0, 4)
    model = toy.mlp(classes=1)

    def ndcg():
        return ndcg_score(y[None].numpy(), model(x).detach().T.numpy(), k=20)

    before = ndcg()
    trained(node, {"x": x, "y": y}, "regression", model)
    assert ndcg() > max(before + 0.1, 0.9)
