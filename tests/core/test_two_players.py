"""Updates own their parameters: what one player's loss does not belong to gets no gradient from it."""

from __future__ import annotations

import pytest
import torch
from toy import adam, recipe, stage

from regraft.core import Clock, compile
from regraft.techniques.generative.gan import GAN
from regraft.techniques.regularise.sam import SAM
from regraft.testing import Players


def two_players(*extra):
    model = Players()
    data = {"x": torch.randn(64, 8, generator=torch.Generator().manual_seed(0))}
    (chosen,) = compile(recipe(stage(model, data=data, update=adam(1e-3))), [GAN(), *extra]).stages
    step = chosen.step(chosen)
    return model, step, step.with_noise(next(chosen.source.batches(model)))


@pytest.mark.inventory("adv-loss", by="technique GAN")
def test_gan_players_do_not_touch_each_others_gradients():
    model, step, batch = two_players()
    step.updates["generator"].gradients(step.generator_loss, batch)
    assert all(p.grad is None for p in model.discriminator.parameters())
    assert all(p.grad is not None for p in model.generator.parameters())
    mine = [p.grad.clone() for p in model.generator.parameters()]
    step.updates["discriminator"].gradients(step.discriminator_loss, batch)
    assert all(torch.equal(a, p.grad) for a, p in zip(mine, model.generator.parameters(), strict=True))


@pytest.mark.inventory("adv-loss", by="technique GAN")
def test_a_players_step_leaves_the_other_players_weights_as_they_are_bit_for_bit():
    for mine, other in (("generator", "discriminator"), ("discriminator", "generator")):
        model, step, batch = two_players()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        step.updates[mine](getattr(step, f"{mine}_loss"), batch, Clock(0, 1))
        moved = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert moved == {mine}, other


def test_a_plain_backward_would_have_touched_them():
    model, step, batch = two_players()
    step.generator_loss(batch).value.backward()
    assert all(p.grad is not None for p in model.discriminator.parameters())


def test_sam_climbs_with_one_player_only():
    model, step, batch = two_players(SAM(rho=0.1))
    seen = []

    def watched(part):
        seen.append([p.detach().clone() for p in model.parameters()])
        return step.generator_loss(part)

    step.updates["generator"].gradients(watched, batch)
    here, climbed = seen
    moved = [not torch.equal(a, b) for a, b in zip(here, climbed, strict=True)]
    names = [name for name, _ in model.named_parameters()]
    assert [name for name, did in zip(names, moved, strict=True) if did] == [
        n for n in names if n.startswith("generator")
    ]
