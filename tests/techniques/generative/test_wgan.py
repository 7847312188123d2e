"""The Wasserstein form of GAN: its losses by hand, what bounds the critic, and the recipes with the optimizers of the papers."""

from __future__ import annotations

import pytest
import torch
import yaml
from techniques.generative.test_gan import CENTRE, NOISE, Pair, cloud
from toy import adam, descent, recipe, sgd, stage

from regraft.config.recipe import read_recipe
from regraft.core import Clock, compile, fit
from regraft.errors import ConfigError
from regraft.losses.adversarial import critic_generator_loss, critic_loss, gradient_penalty
from regraft.optim.optimizers import RMSprop
from regraft.phases import train
from regraft.phases.train import train_job
from regraft.techniques.generative.gan import GAN
from regraft_recipes import recipes

WASSERSTEIN = [GAN(loss="wasserstein", clip=0.05, rounds=5), GAN(loss="wasserstein", penalty=1.0, rounds=3)]


@pytest.mark.inventory("adv-loss", by="technique GAN: {loss: wasserstein}")
def test_the_losses_are_the_difference_of_means_and_its_fake_half():
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([0.5, -0.5, 1.5])
    assert critic_loss(real, fake).item() == pytest.approx(0.5 - 2.0)
    assert critic_generator_loss(fake).item() == pytest.approx(-0.5)


def test_the_penalty_of_a_linear_critic_is_its_slope_less_one_squared():
    slope = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    real, fake = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    found = gradient_penalty(lambda x: x @ slope, real, fake, torch.rand(6))
    assert found.item() == pytest.approx(16.0)  # (5 - 1)^2
    (grad,) = torch.autograd.grad(found, slope)
    torch.testing.assert_close(grad, 2 * 4 * slope.detach() / 5)


def test_the_penalty_has_the_gradient_of_finite_differences():
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 5, dtype=torch.float64, generator=draw, requires_grad=True)
    real, fake, mix = (torch.rand(n, dtype=torch.float64, generator=draw) for n in ((7, 2), (7, 2), (7,)))

    def of(w):
        return gradient_penalty(lambda x: (x @ w).tanh().sum(1), real, fake, mix)

    assert torch.autograd.gradcheck(of, (weight,))


def test_every_weight_of_the_critic_is_within_the_limit_and_no_others_are():
    model = Pair()
    before = [p.detach().clone() for p in model.generator.parameters()]
    (compiled,) = compile(
        recipe(stage(model, steps=1, data=cloud(), update=descent(RMSprop(lr=1e-3)))), WASSERSTEIN[:1]
    ).stages
    step = compiled.step(compiled)
    step(next(compiled.source.batches(model)), Clock(0, 1))
    assert max(p.abs().max() for p in model.discriminator.parameters()).item() <= 0.05 + 1e-7
    assert max(p.abs().max() for p in model.generator.parameters()).item() > 0.3
    assert any(not torch.equal(p, q) for p, q in zip(before, model.generator.parameters(), strict=True))


@pytest.mark.inventory("rmsprop-wgan", by="train.optimizer: RMSprop, technique GAN: {loss: wasserstein}")
@pytest.mark.parametrize("technique", WASSERSTEIN, ids=["clip", "penalty"])
def test_the_generator_moves_onto_the_data(technique):
    model = Pair()
    before = (model.generator(NOISE).mean(0) - CENTRE).norm()
    update = (
        descent(RMSprop(lr=1e-3))
        if technique.clip
        else adam(
            2e-3,
        )
    )
    report = fit(compile(recipe(stage(model, steps=400, data=cloud(), update=update)), [technique]))
    after = (model.generator(NOISE).mean(0) - CENTRE).norm()
    assert after < 0.25 * before
    early, late = (
        abs(sum(r["discriminator"] for r in part)) for part in (report.history[50:100], report.history[-50:])
    )
    assert late < early or technique.penalty  # the critic's loss says how far training is


@pytest.mark.parametrize("technique", WASSERSTEIN, ids=["clip", "penalty"])
def test_slices_of_a_batch_give_the_step_of_the_whole(technique):
    def trained(micro):
        model = Pair()
        update = sgd(0.01, micro=micro)
        fit(compile(recipe(stage(model, steps=3, data=cloud(), update=update)), [technique]))
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.testing.assert_close(trained(1), trained(4), rtol=1e-4, atol=1e-5)


def test_a_critic_without_a_bound_is_refused():
    with pytest.raises(ConfigError, match=r"give `clip: 0\.01` or `penalty: 10`"):
        compile(recipe(stage(Pair(), data=cloud())), [GAN(loss="wasserstein")])


def resolved(name, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "write_report", lambda run: run)
    toy = ("stages.0.steps=2", "train.batch_size=8", "data.main.limit=32")
    run = train_job(read_recipe(recipes()[name], toy), tmp_path / "run")
    return yaml.safe_load((run.path / "recipe.yaml").read_text())


@pytest.mark.inventory("adam-gan-betas", by="regraft train gan.yaml")
def test_the_record_of_a_gan_run_has_the_betas_of_the_preset(tmp_path, monkeypatch):
    optimizer = resolved("gan", tmp_path, monkeypatch)["train"]["optimizer"]
    assert optimizer["Adam"]["betas"] == [0.5, 0.999]


@pytest.mark.inventory("rmsprop-wgan", by="regraft train wgan.yaml")
def test_the_record_of_a_wgan_run_has_rmsprop_and_the_wasserstein_loss(tmp_path, monkeypatch):
    written = resolved("wgan", tmp_path, monkeypatch)
    assert list(written["train"]["optimizer"]) == ["RMSprop"]
    (technique,) = written["techniques"]
    assert technique["GAN"]["loss"] == "wasserstein"
