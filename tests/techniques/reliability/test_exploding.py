"""Gradients that explode are noticed before a step is made of them, by the norm of the gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from toy import Tensors, recipe, sgd, stage, weights

from regraft.core import Loss, compile, fit
from regraft.core.checkpoint import Checkpointer, load
from regraft.core.seeding import generator
from regraft.core.train import advance, start
from regraft.errors import RunError
from regraft.techniques.reliability.guard import Guard

PLANTED = 35  # step at which the recurrent weights are blown up


class Recurrent(nn.Module):
    """Rows (N, T) read one number at a time by a linear recurrence: gradients grow like the largest eigenvalue to the T."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.read, self.head = nn.Linear(1, width), nn.Linear(width, 2)
        self.again = nn.Parameter(0.9 * torch.eye(width))

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), len(self.again))
        for at in range(x.shape[1]):
            state = state @ self.again + self.read(x[:, at : at + 1])
        return self.head(state)


def sequences():
    x = torch.randn(256, 20, generator=generator(0))
    return {"x": x, "y": (x[:, -5:].sum(1) > 0).long()}


def planted(model, batch, clock):
    """Cross-entropy; in one step with the gradient of a recurrence with eigenvalue 1.8, and the loss of the model as it is."""

    def loss(factor):
        logits = torch.func.functional_call(model, {"again": factor * model.again}, (batch["x"],))
        return nn.functional.cross_entropy(logits, batch["y"])

    value = loss(1.0)
    if clock.step == PLANTED:
        blown = loss(2.0)
        value = value.detach() + blown - blown.detach()
    return Loss(value, float(len(batch["x"])))


def made(*techniques, steps=50):
    chosen = stage(Recurrent(), steps=steps, source=Tensors(sequences()), objective=planted, update=sgd(0.01))
    return compile(recipe(chosen), techniques)


@pytest.mark.inventory("exploding-grad-watch", by="technique Guard: gradient_spike")
def test_a_planted_blow_up_of_a_recurrent_network_raises_an_alarm_and_changes_nothing():
    whole = made(Guard(gradient_spike=10.0))
    run = advance(start(whole), PLANTED)
    before = weights(whole.model)
    advance(run, 1)
    assert torch.equal(weights(whole.model), before), "the step was made"
    advance(run)
    assert "the norm of the gradient jumped to" in run.notes[0]
    assert f"at step {PLANTED + 1}" in run.notes[0]
    assert run.notes[-1] == "stage 'toy': 1 of 50 steps were not made (Guard)"


@pytest.mark.inventory("exploding-grad-watch", by="technique Guard: gradient_spike")
def test_the_loss_alone_tells_when_the_weights_are_lost_and_a_calm_run_raises_no_alarm():
    with pytest.raises(RunError, match=r"the loss became (nan|inf) at step"):
        fit(made(Guard(spike=3.0)))
    calm = stage(Recurrent(), steps=60, source=Tensors(sequences()), update=sgd(0.01))
    assert fit(compile(recipe(calm), [Guard(spike=3.0, gradient_spike=10.0)])).notes == ()
    with pytest.raises(
        RunError,
        match="the norm of the gradient jumped to",
    ):
        fit(made(Guard(on_trouble="stop", gradient_spike=10.0)))


def test_the_levels_survive_a_resume_bit_for_bit(tmp_path):
    whole = made(Guard(spike=50.0, gradient_spike=10.0))
    fit(whole, hooks=[Checkpointer(tmp_path / "whole", every=17, keep=10)])
    for folder in sorted((tmp_path / "whole").iterdir()):
        again = made(Guard(spike=50.0, gradient_spike=10.0))
        report = fit(again, hooks=[Checkpointer(tmp_path / "again", every=100)], resume=load(folder))
        assert torch.equal(weights(again.model), weights(whole.model)), folder.name
        assert report.notes[-1] == "stage 'toy': 1 of 50 steps were not made (Guard)"
