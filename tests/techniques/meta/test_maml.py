"""MAML: gradients against finite differences, tasks from examples, and faster adaptation than joint training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from toy import Tensors, adam, recipe, stage, weights

from regraft.core import Batch, Clock, Loss, compile, fit
from regraft.data.episodes import Episodes
from regraft.data.sources import Examples
from regraft.losses.supervised import cross_entropy
from regraft.techniques.meta.maml import MAML, QueryLoss
from regraft.testing import Rows, blobs, network, toy_recipe

NOW = Clock(0, 1)


def sine_tasks(n: int = 64, k: int = 10, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    amplitude = torch.rand(n, 1, 1, generator=g) * 4 + 1
    phase = torch.rand(n, 1, 1, generator=g) * 3.14
    x = torch.rand(n, 2 * k, 1, generator=g) * 10 - 5
    y = amplitude * torch.sin(x + phase)
    return {"support_x": x[:, :k], "support_y": y[:, :k], "query_x": x[:, k:], "query_y": y[:, k:]}


def mse(model, batch, clock):
    return Loss((model(batch["x"]) - batch["y"]).square().mean(), len(batch["x"]))


def regressor(width=40):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )  # fmt: skip


def trained(maml, steps=120):
    model = regressor()
    chosen = replace(stage(model, steps=steps, objective=mse, update=adam(1e-2)), source=Tensors(sine_tasks(), 8))
    fit(compile(recipe(chosen), [maml]))
    return model


@pytest.mark.parametrize(("first_order", "share"), [(False, 0.8), (True, 0.95)])
def test_it_adapts_better_than_joint_training(first_order, share):
    maml = MAML(inner_lr=0.02, inner_steps=3, first_order=first_order)
    adapted = QueryLoss(mse, maml)
    held_out = sine_tasks(seed=5)
    meta, joint = trained(maml), trained(MAML(inner_lr=0.0))
    assert adapted(meta, held_out, NOW).value < share * adapted(joint, held_out, NOW).value


@pytest.mark.parametrize("steps", [1, 2])
def test_the_gradient_matches_finite_differences(steps):
    model = nn.Linear(1, 1).double()
    tasks = {key: value[:3].double() for key, value in sine_tasks().items()}
    objective = QueryLoss(mse, MAML(inner_lr=0.05, inner_steps=steps))
    objective(model, tasks, NOW).value.backward()
    gradient, eps, values = model.weight.grad.item(), 1e-6, []
    for shift in (eps, -2 * eps):
        with torch.no_grad():
            model.weight += shift
        values.append(objective(model, tasks, NOW).value.item())
    assert gradient == pytest.approx((values[0] - values[1]) / (2 * eps), rel=1e-5)


def test_first_order_leaves_out_exactly_the_second_derivative():
    """For a loss a w^2 / 2 one inner step gives w' = (1 - r a) w: the gradient is a w' (1 - r a), or a w' in first order."""

    class Scalar(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.w * x

    def bowl(model, batch, clock):
        return Loss(0.5 * 3.0 * model(batch["x"]).square().mean(), 1.0)

    ones = {"support_x": torch.ones(1, 1), "query_x": torch.ones(1, 1)}
    for first_order, expected in ((False, 3 * 2 * 0.7**2), (True, 3 * 2 * 0.7)):
        model = Scalar()
        QueryLoss(bowl, MAML(inner_lr=0.1, first_order=first_order))(model, ones, NOW).value.backward()
        assert model.w.grad.item() == pytest.approx(expected, rel=1e-5)


def test_frozen_parameters_are_not_adapted():
    model = regressor()
    model[0].requires_grad_(False)
    tasks = sine_tasks(2)
    QueryLoss(mse, MAML())(model, tasks, NOW).value.backward()
    assert model[0].weight.grad is None
    assert model[2].weight.grad is not None


def test_labelled_examples_become_tasks_over_the_rows_the_source_draws_from():
    x, y = blobs(n=200)
    rows = torch.arange(0, 200, 2).numpy()
    source = Examples(Rows(x), y, batch_size=8, seed=0, rows=rows)
    compiled = compile(recipe(stage(network(), source=source)), [MAML(ways=3, shots=2, queries=4, tasks=2)])
    episodes = compiled.stages[0].source
    assert isinstance(episodes, Episodes)
    batch = episodes.batch_at(0)
    assert batch["support_x"].shape == (2, 6, 8)
    assert batch["query_x"].shape == (2, 12, 8)
    for step in range(20):
        assert set(episodes.rows_at(step).flatten().tolist()) <= set(rows.tolist())


def test_a_source_that_yields_tasks_already_is_used_as_it_is():
    source = Tensors(sine_tasks(), 8)
    compiled = compile(recipe(stage(regressor(), source=source, objective=mse)), [MAML()])
    assert compiled.stages[0].source is source


def test_adapt_gives_a_copy_that_knows_the_task_and_leaves_the_model():
    maml = MAML(ways=3, shots=5, queries=5, inner_lr=0.1, inner_steps=5)
    plain = toy_recipe(network(), steps=30)
    fit(compile(plain, [maml]))
    model = plain.model
    episode = Episodes(
        Rows(blobs(n=300, seed=8)[0]), blobs(n=300, seed=8)[1], ways=3, shots=5, queries=20, tasks=1, seed=3
    )
    batch = episode.batch_at(0)
    support, query = (
        {k.removeprefix(f"{r}_"): v[0] for k, v in batch.items() if k.startswith(r)} for r in ("support", "query")
    )
    before = weights(model)
    adapted = maml.adapt(model, support)
    assert torch.equal(before, weights(model))
    assert adapted is not model

    def loss(m):
        return float(cross_entropy(m, query, NOW).value.detach())

    assert loss(adapted) < 0.8 * loss(model)


def test_second_order_goes_through_attention():
    """The fused kernels have no second derivative; the inner loop chooses the plain one."""

    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.out = nn.Linear(1, 8), nn.Linear(8, 1)

        def forward(self, x):
            h = self.encode(x)[None, None]
            return self.out(nn.functional.scaled_dot_product_attention(h, h, h)[0, 0])

    model = Attend()
    QueryLoss(mse, MAML())(model, sine_tasks(2), NOW).value.backward()
    assert bool(model.encode.weight.grad.isfinite().all())
