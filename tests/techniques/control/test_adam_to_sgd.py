"""The switch from Adam to SGD: the rate by hand, no jump of the loss, and groups that keep their share."""

from __future__ import annotations

import pytest
import torch
from toy import blobs, mlp, recipe, sgd, stage

from regraft.core import Clock, Hook, Loss, compile, fit
from regraft.core.descent import Descent
from regraft.core.train import advance, start
from regraft.errors import ConfigError
from regraft.optim.build import DescentBuilder
from regraft.optim.optimizers import AdamW
from regraft.optim.schedules import Linear
from regraft.techniques.control.adam_to_sgd import AdamToSGD, Switching
from regraft.techniques.transfer.discriminative import Discriminative


def switching(update=None, at=0.5, steps=100, techniques=(), **options):
    chosen = stage(
        model=mlp(),
        data=blobs(n=512),
        steps=steps,
        update=update or DescentBuilder(optimizer=AdamW(lr=0.01), **options),
    )
    return start(compile(recipe(chosen), [AdamToSGD(at=at), *techniques]))


def update_of(run):
    (update,) = run.step.updates.values()
    while not isinstance(update, Switching):
        update = update.base
    return update


def test_the_rate_is_the_length_of_adams_step_over_its_share_of_the_gradient():
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    made = Switching(Descent({"w": parameter}, AdamW(lr=0.1, weight_decay=0.0).build), 0.5)
    rates = []
    for k in range(40, 50):
        before = parameter.detach().clone()
        made(lambda batch: Loss((parameter**2).sum() / 2), {"x": torch.zeros(1)}, Clock(k, 100))
        step = parameter.detach() - before
        rates.append((step @ step / -(step @ before)).item())  # the gradient of |w|^2 / 2 is w
    mean = 0.0
    for rate in rates:
        mean = 0.9 * mean + 0.1 * rate
    assert made.found() == pytest.approx(mean / (1 - 0.9**10), rel=1e-5)


@pytest.mark.inventory("adam-to-sgd", by="technique AdamToSGD")
def test_from_the_switch_on_it_is_sgd_and_the_loss_does_not_jump():
    run = switching()
    advance(run)
    update = update_of(run)
    assert update.switched
    assert isinstance(update.descent.optimizer, torch.optim.SGD)
    assert update.descent.optimizer.param_groups[0]["momentum"] == 0.9
    losses = [record["loss"] for record in run.history]
    assert max(losses[50:60]) < 1.5 * max(losses[40:50])
    assert sum(losses[90:]) < sum(losses[40:50])
    (note,) = run.notes
    assert "from step 51 on SGD with momentum, at a rate of" in note


def test_the_schedule_goes_on_from_where_it_was():
    run = switching(schedule=Linear(), at=0.5)
    advance(run, 60)
    update = update_of(run)
    assert update.descent.optimizer.param_groups[0]["lr"] == pytest.approx(
        0.1 * update.found() / 0.5 * (1 - 59 / 100), rel=1e-6
    )


def test_groups_keep_their_share_of_the_rate():
    run = switching(techniques=[Discriminative(decay=0.5, head=2.0)])
    before = list(update_of(run).descent.base_rates)
    advance(run, 60)
    after = update_of(run).descent.base_rates
    assert len(set(before)) > 1
    assert [rate / max(after) for rate in after] == pytest.approx([rate / max(before) for rate in before])


def test_there_must_be_an_adam_to_switch_from():
    with pytest.raises(ConfigError, match="the optimizer is SGD; take AdamW"):
        fit(compile(recipe(stage(update=sgd())), [AdamToSGD()]))


def test_a_stage_that_is_over_before_the_switch_says_so():
    compiled = compile(
        recipe(stage(model=mlp(), steps=20, update=DescentBuilder(optimizer=AdamW(lr=0.01)))), [AdamToSGD(at=0.9)]
    )

    class Stop(Hook):
        def on_step(self, run, loss):
            if run.clock.step == 5:
                run.stop("enough")

    assert any("no switch was made in the 5 steps of the stage" in note for note in fit(compiled, hooks=[Stop()]).notes)
    assert not any("no switch was made" in note for note in fit(compiled).notes)
