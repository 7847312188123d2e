"""PCGrad: against the library's own, what is left of a conflict, and how tasks come to it."""

import pytest
import torch
import toy
from torch import nn

from regraft.core import Clock, Loss, compile, fit
from regraft.core.seeding import generator
from regraft.errors import Conflict
from regraft.losses.criterion import objective_of, question_of
from regraft.losses.tasks import TaskLosses
from regraft.optim.surgery import conflicts, inner_products, projected
from regraft.techniques.control.pcgrad import PCGrad
from regraft.techniques.control.uncertainty_weighting import UncertaintyWeighting
from regraft.techniques.regularise.weight_penalty import L2Penalty


def random_gradients(tasks, size=6, seed=0):
    return torch.randn(tasks, size, generator=generator(seed), dtype=torch.float64)


def orders(tasks, seed=0):
    draw = generator(seed, 1)
    return [[o for o in torch.randperm(tasks, generator=draw).tolist() if o != own] for own in range(tasks)]


def by_hand(gradients, order, rounds=1):
    """Algorithm 1, on the gradients themselves."""
    out = []
    for own, others in enumerate(order):
        g = gradients[own].clone()
        for _ in range(rounds):
            for other in others:
                along = g @ gradients[other]
                if along < 0:
                    g -= along / gradients[other].square().sum() * gradients[other]
        out.append(g)
    return torch.stack(out)


@pytest.mark.parametrize("tasks", [2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_coefficients_from_inner_products_give_the_gradients_of_the_algorithm(tasks, seed):
    g, order = random_gradients(tasks, seed=seed), orders(tasks, seed)
    products = inner_products([[row[:2], row[2:]] for row in g])
    torch.testing.assert_close(products, g @ g.T)
    torch.testing.assert_close(projected(products, order) @ g, by_hand(g, order))


@pytest.mark.inventory("gradient-surgery", by="technique PCGrad")
@pytest.mark.parametrize("seed", range(10))
def test_after_projection_no_pair_of_gradients_has_a_negative_inner_product(seed):
    """Of two tasks after one round, of more after several; and one round of many tasks can leave some."""
    two = random_gradients(2, seed=seed)
    two[1] -= 2 * two[0]  # a conflict for certain
    assert conflicts(inner_products([[row] for row in two])) == 1.0
    assert conflicts(inner_products([[row] for row in by_hand(two, [[1], [0]])])) == 0.0
    many = random_gradients(4, size=8, seed=seed)
    made = projected(many @ many.T, orders(4, seed), rounds=2000) @ many
    assert (made @ made.T).min().item() > -1e-9 * float(many.square().sum())


class Tasks(nn.Module):
    """Three tasks of the outputs of a linear layer, the first two against each other."""

    task_names = ("up", "down", "side")

    def tasks(self, model, batch, clock):
        out = model(batch["x"])
        return TaskLosses(
            torch.stack([(out - 1).square().mean(), 3 * (out + 1).square().mean(), out[:, 0].mean()]), len(out)
        )

    def forward(self, model, batch, clock):
        return self.tasks(model, batch, clock).mean()


class Two(Tasks):
    task_names = ("up", "down")

    def tasks(self, model, batch, clock):
        found = super().tasks(model, batch, clock)
        return TaskLosses(found.values[:2], found.weight)


def stage_of(objective, **changes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 2))
    return toy.stage(model, objective=objective, **changes)


def gradient_of(stage, batch):
    update = stage.update(stage.trainable())
    loss = update.gradients(lambda part: stage.objective(stage.model, part, Clock(0, 1)), batch)
    return loss, [p.grad.clone() for p in update.params]


def test_the_gradient_is_that_of_pytorch_optimizers_pcgrad():
    from pytorch_optimizer import PCGrad as Theirs

    stage = compile(toy.recipe(stage_of(Two())), [PCGrad()]).stages[0]
    batch = {key: value[:32] for key, value in toy.blobs().items()}
    loss, ours = gradient_of(stage, batch)
    optimizer = torch.optim.SGD(stage.model.parameters(), lr=1.0)
    theirs = Theirs(optimizer, reduction="mean")
    theirs.pc_backward(list(Two().tasks(stage.model, batch, Clock(0, 1)).values))
    for mine, parameter in zip(ours, stage.model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-5, atol=1e-7)
    assert float(loss.terms["conflicts"]) == 1.0
    torch.testing.assert_close(loss.value, Two()(stage.model, batch, Clock(0, 1)).value)


def test_where_nothing_conflicts_it_is_the_plain_gradient():
    class Agreeing(Two):
        def tasks(self, model, batch, clock):
            out = model(batch["x"])
            return TaskLosses(torch.stack([out.square().mean(), 2 * out.square().mean()]), len(out))

    batch = {key: value[:32] for key, value in toy.blobs().items()}
    stage = compile(toy.recipe(stage_of(Agreeing())), [PCGrad()]).stages[0]
    loss, operated = gradient_of(stage, batch)
    _, plain = gradient_of(stage_of(Agreeing()), batch)
    assert float(loss.terms["conflicts"]) == 0.0
    for one, other in zip(operated, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_a_penalty_is_part_of_every_task_and_counts_once():
    batch = {key: value[:32] for key, value in toy.blobs().items()}
    with_penalty = compile(toy.recipe(stage_of(Tasks())), [L2Penalty(weight=0.1), PCGrad()]).stages[0]
    loss, _ = gradient_of(with_penalty, batch)
    weights = [p for p in with_penalty.model.parameters() if p.ndim > 1]
    penalty = 0.1 * sum(w.detach().square().sum() for w in weights)
    torch.testing.assert_close(loss.terms["l2"], penalty)
    torch.testing.assert_close(loss.value, Tasks()(with_penalty.model, batch, Clock(0, 1)).value + penalty)


def test_all_tasks_see_the_same_dropout():
    seen = []

    class Watching(Two):
        def tasks(self, model, batch, clock):
            seen.append(torch.nn.functional.dropout(torch.ones(64)))
            return super().tasks(model, batch, clock)

    stage = compile(toy.recipe(stage_of(Watching())), [PCGrad()]).stages[0]
    gradient_of(stage, toy.blobs())
    assert len(seen) == 2
    assert torch.equal(*seen)


def test_labels_are_tasks_and_one_task_is_refused_in_a_sentence():
    labels = torch.eye(4)[toy.blobs()["y"]]
    objective = objective_of(None, question_of("multilabel", labels, 4, ("red", "round", "old", "new")))
    data = {"x": toy.blobs()["x"], "y": labels}
    report = fit(
        compile(toy.recipe(toy.stage(data=data, objective=objective, steps=30)), [PCGrad(), UncertaintyWeighting()])
    )
    assert 0 < report.history[0]["conflicts"] <= 1
    assert {f"log_variance/{name}" for name in ("red", "round", "old", "new")} <= report.history[0].keys()
    with pytest.raises(
        Conflict, match=r"PCGrad weighs several tasks .* stage 'toy' has one; give data with several labels"
    ):
        compile(toy.recipe(toy.stage()), [PCGrad()])


def test_it_reaches_a_point_that_the_weaker_of_two_tasks_would_else_be_kept_from():
    """Two tasks pull one weight apart, one of them ten times harder, and share a direction: surgery keeps what both gain."""

    class Pull(nn.Module):
        task_names = ("hard", "weak")

        def tasks(self, model, batch, clock):
            a, b = model.weight[0]
            return TaskLosses(torch.stack([10 * (a - 1).square() + b.square(), (a + 1).square() + (b - 1).square()]), 1)

        def forward(self, model, batch, clock):
            return self.tasks(model, batch, clock).mean()

    def first_step(*techniques):
        model = nn.Linear(2, 1, bias=False)
        nn.init.constant_(model.weight, 0.0)
        stage = toy.stage(model, objective=Pull(), steps=1, update=toy.sgd(0.01), data={"x": torch.zeros(32, 2)})
        fit(compile(toy.recipe(stage), techniques))
        return Pull().tasks(model, {}, None).values

    start = torch.tensor([10.0, 2.0])
    assert first_step()[1] > start[1]  # the weak task gets worse
    assert (first_step(PCGrad()) < start).all()


def test_the_loss_of_a_step_is_a_loss():
    assert isinstance(TaskLosses(torch.tensor([1.0, 3.0]), 2).mean(), Loss)
    assert TaskLosses(torch.tensor([1.0, 3.0]), 2).mean().value.item() == 2.0
