"""GAN: the generator moves onto the data."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy import adam, recipe, stage

from regraft.core import Clock, compile, fit
from regraft.errors import Conflict
from regraft.techniques.generative.gan import GAN
from regraft.techniques.regularise.sam import SAM


class Pair(nn.Module):
    latent = 2

    def __init__(self, size=2):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.generator = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, size))
            self.discriminator = nn.Sequential(nn.Linear(size, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))


CENTRE = torch.tensor([3.0, -2.0])
NOISE = torch.randn(2000, 2, generator=torch.Generator().manual_seed(1))


def cloud(n=512):
    return {"x": torch.randn(n, 2, generator=torch.Generator().manual_seed(0)) * 0.5 + CENTRE}


@pytest.mark.parametrize("extra", [(), (SAM(rho=0.01),)], ids=["plain", "with SAM"])
def test_the_generator_moves_onto_the_data(extra):
    model = Pair()
    before = (model.generator(NOISE).mean(0) - CENTRE).norm()
    fit(compile(recipe(stage(model, steps=600, data=cloud(), update=adam(2e-3))), [GAN(), *extra]))
    after = (model.generator(NOISE).mean(0) - CENTRE).norm()
    assert after < 1.0
    assert after < 0.4 * before


def test_the_discriminator_is_updated_as_often_as_asked():
    def momentum_steps(rounds):
        model = Pair()
        (compiled,) = compile(recipe(stage(model, steps=1, data=cloud())), [GAN(rounds=rounds)]).stages
        step = compiled.step(compiled)
        step(next(compiled.source.batches(model)), Clock(0, 1))
        states = {name: next(iter(update.optimizer.state.values()))["step"] for name, update in step.updates.items()}
        return {name: int(value) for name, value in states.items()}

    assert momentum_steps(3) == {"discriminator": 3, "generator": 1}


def test_images_are_compared_in_the_generators_shape():
    model = Pair(size=48)
    images = torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    data = {"x": images}
    fit(compile(recipe(stage(model, steps=2, data=data)), [GAN()]))


def test_a_generator_of_another_size_is_refused_with_both_sizes():
    with pytest.raises(Conflict, match=r"gives 2 values per example, but the data has 48 \(3, 4, 4\)"):
        fit(compile(recipe(stage(Pair(), steps=2, data={"x": torch.rand(64, 3, 4, 4)})), [GAN()]))
