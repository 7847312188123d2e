"""Losses of several tasks: each task's is the loss of its column, and their mean is the loss."""

import pytest
import torch
from losses.test_criteria import HERE, Given, outputs_for, targets_for

from regraft.config.parse import parse_one
from regraft.errors import ConfigError
from regraft.losses.criterion import MeanOverExamples, objective_of, question_of

LOSSES = [
    ("multilabel", "CrossEntropy"), ("multilabel", {"CrossEntropy": {"label_smoothing": 0.1}}),
    ("multilabel", "Focal"), ("regression", "MSE"), ("regression", "MAE"), ("regression", {"Huber": {"delta": 0.5}}),
]  # fmt: skip


def several(task, n=12):
    return (
        targets_for(task, n=n)
        if task == "multilabel"
        else torch.randn(n, 4, generator=torch.Generator().manual_seed(5))
    )


@pytest.mark.parametrize(("task", "node"), LOSSES)
def test_the_mean_of_the_tasks_is_the_loss_and_each_is_that_of_its_column_alone(task, node):
    outputs, target = outputs_for("multilabel"), several(task)
    objective = objective_of(parse_one(node, "loss"), question_of(task, target, 4, ("a", "b", "c", "d")))
    assert isinstance(objective, MeanOverExamples)
    batch = {"x": torch.arange(12), "y": target}
    found = objective.tasks(Given(outputs), batch, HERE)
    assert objective.task_names == ("a", "b", "c", "d")
    torch.testing.assert_close(found.values.mean(), objective(Given(outputs), batch, HERE).value, rtol=1e-6, atol=1e-7)
    for at in range(4):
        column = target[:, at : at + 1] if task == "multilabel" else target[:, at]
        alone = objective_of(parse_one(node, "loss"), question_of(task, column, 1))
        value = alone(Given(outputs[:, at : at + 1]), {"x": torch.arange(12), "y": column}, HERE).value
        torch.testing.assert_close(found.values[at], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("task", "node"), LOSSES)
def test_gradients_of_the_tasks_are_those_of_finite_differences(task, node):
    outputs, target = outputs_for("multilabel", n=5).double().requires_grad_(), several(task, n=5).double()
    criterion, question = parse_one(node, "loss"), question_of(task, target, 4)
    assert torch.autograd.gradcheck(lambda o: criterion.task_values(o, target, question), (outputs,))


@pytest.mark.parametrize("name", ["PairwiseRank", "ListwiseRank"])
def test_several_numbers_have_no_order(name):
    with pytest.raises(ConfigError, match=f"{name} orders examples by one number, but the label names price, size"):
        objective_of(parse_one(name, "loss"), question_of("regression", torch.zeros(3, 2), 2, ("price", "size")))
