"""Stochastic weight averaging against torch's own, running statistics included."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn
from toy import Tensors, adam, blobs, mlp, recipe, sgd, stage, weights

from regraft.core import Hook, compile, fit
from regraft.techniques.regularise.weight_average import WeightAverage


class Sampler(Hook):
    """Feeds torch's averaged model after chosen steps."""

    def __init__(self, after):
        self.after, self.averaged = after, None

    def on_step(self, run, loss):
        if run.clock.step in self.after:
            self.averaged = self.averaged or AveragedModel(run.stage.model)
            self.averaged.update_parameters(run.stage.model)


def batch_normed(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(8, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Linear(16, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Linear(16, 4),
        )


@pytest.mark.inventory("swa", by="technique WeightAverage: {kind: swa}")
@pytest.mark.parametrize(
    ("last", "every", "after"), [(0.5, 5, (15, 20)), (0.5, 1, range(11, 21)), (1.0, 4, (4, 8, 12, 16, 20))]
)
def test_weights_and_running_statistics_are_those_of_torchs_own(last, every, after):
    data = blobs(96)
    chosen = stage(batch_normed(), steps=20, data=data, update=sgd(0.2))
    technique = WeightAverage(kind="swa", last=last, every=every, statistics=3)
    sampler = Sampler(set(after))
    fit(compile(recipe(chosen), [technique]), hooks=[sampler])
    theirs = sampler.averaged
    batches = [batch["x"] for _, batch in zip(range(3), Tensors(data).batches(chosen.model), strict=False)]
    update_bn(batches, theirs)
    for (name, ours), other in zip(chosen.model.state_dict().items(), theirs.module.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-6, msg=name)
    assert [module.momentum for module in chosen.model.modules() if isinstance(module, nn.BatchNorm1d)] == [0.1, 0.1]


@pytest.mark.inventory("swa", by="technique WeightAverage: {kind: swa}")
def test_the_statistics_fit_the_averaged_weights_and_those_of_training_do_not():
    data, last = blobs(128), {}

    class Before(Hook):
        def on_step(self, run, loss):
            last.update({name: buffer.clone() for name, buffer in run.stage.model.named_buffers()})

    chosen = stage(batch_normed(), steps=60, data=data, update=sgd(0.5))
    fit(compile(recipe(chosen), [WeightAverage(kind="swa", last=0.5, every=2, statistics=4)]), hooks=[Before()])
    with torch.no_grad():
        true = chosen.model[0](data["x"]).mean(0)
    new, old = ((mean - true).norm() for mean in (chosen.model[1].running_mean, last["1.running_mean"]))
    assert new < 1e-3
    assert old > 10 * new


def test_statistics_that_do_not_train_stay_and_a_stage_without_a_sample_says_so():
    model = batch_normed()
    for layer in model[:3]:
        layer.requires_grad_(False)
    before = model[1].running_mean.clone()
    fit(compile(recipe(stage(model, steps=6)), [WeightAverage(kind="swa", last=1.0)]))
    assert torch.equal(model[1].running_mean, before)
    assert int(model[4].num_batches_tracked) == 50
    chosen = stage(mlp(), steps=6, update=adam())
    report = fit(compile(recipe(chosen), [WeightAverage(kind="swa", last=0.5, every=10)]))
    assert report.notes == ("WeightAverage: 6 steps hold no sample of the weights, so the last ones are kept",)
    plain = stage(mlp(), steps=6, update=adam())
    fit(recipe(plain))
    assert torch.equal(weights(plain.model), weights(chosen.model))
