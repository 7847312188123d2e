"""InformationBottleneck: its loss by hand, a plain model at the end, and features that say less about the input."""

import copy

import pytest
import torch
import toy
from torch import nn

from regraft.core import Clock, compile, fit
from regraft.layers.capture import captured_input
from regraft.losses.divergence import gaussian_divergence
from regraft.losses.supervised import cross_entropy
from regraft.techniques.regularise.information_bottleneck import InformationBottleneck


def noisy(**options):
    (stage,) = compile(toy.recipe(toy.stage()), [InformationBottleneck(**options)]).stages
    return stage


def test_the_loss_is_that_of_features_with_noise_plus_the_weighted_divergence():
    stage = noisy(weight=0.1, log_variance=-1.0)
    batch = {key: value[:16] for key, value in toy.blobs().items()}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        loss = stage.objective(stage.model, batch, Clock(0, 1))
        torch.manual_seed(3)
        features = stage.model[:-1](batch["x"])
        shaken = features + torch.exp(torch.tensor(-0.5)) * torch.randn_like(features)
    hard = nn.functional.cross_entropy(stage.model[-1](shaken), batch["y"])
    divergence = gaussian_divergence(features, torch.full_like(features, -1.0)).mean()
    torch.testing.assert_close(loss.value, hard + 0.1 * divergence)
    torch.testing.assert_close(loss.terms["divergence"], divergence.detach())


def test_outside_the_objective_the_model_is_plain_and_answers_from_the_mean():
    stage = noisy()
    before = copy.deepcopy(stage.model)
    x = toy.blobs()["x"]
    stage.objective(stage.model, toy.blobs(), Clock(0, 1))
    assert torch.equal(stage.model(x), before(x))
    assert stage.model.state_dict().keys() == before.state_dict().keys()


def test_without_noise_and_weight_it_is_the_base_objective():
    stage = noisy(weight=1e-12, log_variance=-20.0)
    batch = toy.blobs()
    expected = cross_entropy(stage.model, batch, Clock(0, 1)).value
    torch.testing.assert_close(stage.objective(stage.model, batch, Clock(0, 1)).value, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.inventory("kl-term", by="technique InformationBottleneck")
def test_the_dearer_it_is_the_less_the_features_say_and_the_smaller_they_are():
    """Divergence in the log bounds the information in nats from above; accuracy stays while there is room."""
    found = []
    for weight in (1e-4, 1e-2, 1e-1):
        model = toy.mlp()
        report = fit(compile(toy.recipe(toy.stage(model, steps=200)), [InformationBottleneck(weight=weight)]))
        with captured_input(model[-1]) as seen:
            right = (model(toy.blobs()["x"]).argmax(1) == toy.blobs()["y"]).float().mean().item()
        found.append((report.last()["divergence"], seen[0].detach().square().mean().item(), right))
    divergences, sizes, right = zip(*found, strict=True)
    assert divergences[0] > divergences[1] > divergences[2]
    assert sizes[0] > sizes[2]
    assert min(right) > 0.9
