"""Stop rules: where a convex problem is solved they end the stage and say which one it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy import recipe, sgd, stage

from regraft.core import Loss, compile, fit
from regraft.optim.build import DescentBuilder
from regraft.optim.optimizers import SGD
from regraft.techniques.control.stop_when import StopWhen


class Point(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, -4.0]))

    def forward(self, x):
        return self.w


def bowl(model, batch, clock):
    """|w|^2 / 2: the gradient is w, and a step of SGD at rate 0.1 takes a tenth of it off."""
    return Loss((model.w**2).sum() / 2, 1.0)


def run(technique, update=None, steps=400):
    model = Point()
    report = fit(
        compile(recipe(stage(model=model, objective=bowl, steps=steps, update=update or sgd(0.1))), [technique])
    )
    return report, model


@pytest.mark.inventory("stop-grad-norm", by="technique StopWhen: {gradient_norm: 1e-5}")
def test_a_small_gradient_ends_the_stage_at_the_step_it_is_known_for():
    report, model = run(StopWhen(gradient_norm=0.01))
    assert report.stopped["toy"].startswith("the norm of the gradient, 0.00")
    assert report.steps["toy"] == 60  # 5 x 0.9^k < 0.01 first for k = 59, the gradient of step 60
    assert model.w.norm().item() == pytest.approx(5 * 0.9**60, rel=1e-4)


@pytest.mark.inventory("stop-step-norm", by="technique StopWhen: {step_norm: 1e-5}")
def test_a_short_step_ends_it_too():
    report, _ = run(StopWhen(gradient_norm=0, step_norm=0.01))
    assert report.stopped["toy"].startswith("the norm of the step, 0.00")
    assert report.steps["toy"] == 39  # 0.5 x 0.9^k < 0.01 first for k = 38, the step after it


def test_the_gradient_is_measured_before_it_is_clipped():
    clipped = DescentBuilder(optimizer=SGD(lr=0.1), max_norm=1e-3)
    report, _ = run(StopWhen(gradient_norm=0.01), update=clipped, steps=20)
    assert report.stopped == {}


def test_without_a_rule_nothing_is_changed():
    report, _ = run(StopWhen(gradient_norm=0, step_norm=0), steps=30)
    assert (report.stopped, report.steps["toy"]) == ({}, 30)
