"""Gradient descent on all examples, on one and on some of them: where it ends, what a step costs, how noisy it is."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn
from toy import descent, recipe, stage

from regraft.core import Clock, Loss, compile, fit
from regraft.data.sources import Examples
from regraft.optim.optimizers import SGD
from regraft.testing import Rows

N = 64
DRAW = torch.Generator().manual_seed(0)
X = torch.randn(N, 3, generator=DRAW)
Y = X @ torch.tensor([[2.0], [-1.0], [0.5]]) + 0.7 + 0.3 * torch.randn(N, 1, generator=DRAW)


def squares(model, batch, clock):
    return Loss((model(batch["x"]) - batch["y"]).square().mean() / 2, len(batch["x"]))


def line():
    model = nn.Linear(3, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


def batches(size, seed=0):
    return Examples(Rows(X), Y, batch_size=size, seed=seed)


def gradients(size, epochs=1):
    """The gradient at zero of every batch of some epochs, (batches, 4)."""
    model, out = line(), []
    source = batches(size).batches(model)
    for _ in range(epochs * -(-N // size)):
        grads = torch.autograd.grad(squares(model, next(source), Clock(0, 1)).value, list(model.parameters()))
        out.append(torch.cat([grad.flatten() for grad in grads]))
    return torch.stack(out)


@pytest.mark.inventory("gd", by="train: {batch_size: 100000, optimizer: SGD}")
def test_descent_on_all_examples_ends_at_the_closed_form_and_logs_what_a_step_is_over():
    model = line()
    chosen = stage(model, steps=300, source=batches(10 * N), objective=squares, update=descent(SGD(lr=0.3)))
    report = fit(compile(recipe(chosen), []), log_every=1)
    design = torch.cat([X, torch.ones(N, 1)], 1)
    closed = torch.linalg.lstsq(design, Y).solution.flatten()
    found = torch.cat([model.weight.detach().flatten(), model.bias.detach()])
    torch.testing.assert_close(found, closed, rtol=1e-5, atol=1e-6)
    assert {record["weight"] for record in report.history} == {float(N)}  # O(n) a step


@pytest.mark.inventory("sgd", by="train: {batch_size: 1, optimizer: SGD}")
def test_the_gradients_of_single_examples_have_the_full_gradient_as_their_mean():
    single, (whole,) = gradients(1), gradients(N)
    assert len(single) == N
    torch.testing.assert_close(single.mean(0), whole, rtol=1e-5, atol=1e-6)
    assert (single - whole).norm(dim=1).min() > 1e-3  # though none of them is it


@pytest.mark.inventory("minibatch-sgd", by="train: {batch_size: 32, optimizer: SGD}")
def test_the_variance_of_a_minibatch_gradient_falls_with_its_size():
    """Without replacement it is sigma^2 / B (N - B) / (N - 1), so a little less than 1 / B."""
    variance = {size: (gradients(size, 200) - gradients(N)).square().sum(1).mean() for size in (1, 4, 16)}
    for size in (4, 16):
        expected = (N - size) / (N - 1) / size
        assert float(variance[size] / variance[1]) == pytest.approx(expected, rel=0.1)


@pytest.mark.inventory("minibatch-sgd", by="train: {batch_size: 32, optimizer: SGD}")
def test_more_examples_a_second_are_worked_on_in_larger_batches():
    def rate(size):
        """Examples a second, the best of three."""
        model, steps = line(), 60
        best = 0.0
        for _ in range(3):
            chosen = stage(model, steps=steps, source=batches(size), objective=squares, update=descent(SGD(lr=0.01)))
            compiled = compile(recipe(chosen), [])
            begin = time.perf_counter()
            fit(compiled)
            best = max(best, steps * size / (time.perf_counter() - begin))
        return best

    assert rate(N) > 5 * rate(1)
