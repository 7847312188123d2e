"""DANN: one forward pass for both domains, and a better model for the shifted one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy import Tensors, adam, blobs, mlp, recipe, stage

from regraft.core import Clock, compile, fit
from regraft.errors import Conflict
from regraft.layers.gradient_reversal import reverse_gradient
from regraft.losses.adversarial import domain_loss, reversal_weight
from regraft.losses.supervised import cross_entropy
from regraft.techniques.domain.dann import DANN, side_by_side


def shifted(labels=False):
    data = blobs(shift=1.6, seed=4)
    return data if labels else {"x": data["x"]}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_beats_training_on_the_source_alone_on_a_shifted_target(seed):
    def accuracy(techniques):
        model, data = mlp(seed=seed), shifted(labels=True)
        sources = {"target": Tensors(shifted(), seed=1)}
        fit(compile(recipe(stage(model, steps=400, update=adam(3e-3)), sources=sources), techniques))
        return float((model(data["x"]).argmax(-1) == data["y"]).float().mean())

    assert accuracy([DANN(target="target", width=16)]) > accuracy([])


def test_both_domains_go_through_the_model_in_one_pass():
    model, sizes = mlp(), []
    model.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    target = Tensors(shifted(), seed=1)
    fit(compile(recipe(stage(model, steps=3)), [DANN(target=target)]))
    assert sizes == [64] * 3


def prepared(**options):
    model = mlp()
    (compiled,) = compile(recipe(stage(model)), [DANN(target=Tensors(shifted(), seed=1), **options)]).stages
    return model, compiled.objective, next(compiled.source.batches(model))


def test_the_loss_and_gradients_are_those_of_a_plain_formula():
    model, objective, batch = prepared(weight=0.7, gamma=10)
    clock = Clock(3, 10)
    params = [*model.parameters(), *objective.domain.parameters()]
    loss = objective(model, batch, clock)
    ours = torch.autograd.grad(loss.value, params)

    both = torch.cat([batch["x"], batch["target_x"]])
    features = model[:4](both)
    task = nn.functional.cross_entropy(model[4](features)[:32], batch["y"])
    labels = (torch.arange(64) >= 32).float()
    domain = nn.functional.binary_cross_entropy_with_logits(objective.domain(features).squeeze(-1), labels)
    torch.testing.assert_close(loss.value, task + 0.7 * domain)
    scale = reversal_weight(0.3, 10)
    of_task = torch.autograd.grad(task, params, retain_graph=True, allow_unused=True, materialize_grads=True)
    of_domain = torch.autograd.grad(domain, params, allow_unused=True, materialize_grads=True)
    mine = {id(p) for p in objective.domain.parameters()}
    for p, got, t, d in zip(params, ours, of_task, of_domain, strict=True):
        sign = 1.0 if id(p) in mine else -scale  # the classifier descends, the features climb
        torch.testing.assert_close(got, t + 0.7 * sign * d, rtol=1e-4, atol=1e-6)


def test_the_domain_classifier_trains_with_the_model():
    target = Tensors(shifted(), seed=1)
    compiled = compile(recipe(stage(steps=3)), [DANN(target=target)])
    before = [p.clone() for p in compiled.stages[0].objective.domain.parameters()]
    fit(compiled)
    after = compiled.stages[0].objective.domain.parameters()
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_hooks_are_gone_when_the_forward_pass_fails():
    model, objective, batch = prepared()
    batch["x"], batch["target_x"] = batch["x"][:, :3], batch["target_x"][:, :3]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        objective(model, batch, Clock(0, 1))
    assert not model[4]._forward_pre_hooks


def test_the_reversal_is_the_identity_forwards_and_turns_the_gradient_round():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(reverse_gradient(x, 0.3), x)
    (gradient,) = torch.autograd.grad(reverse_gradient(x, 0.3).square().sum(), x)
    torch.testing.assert_close(gradient, -0.3 * 2 * x)


def test_the_weight_of_the_reversal_rises_from_zero_to_one():
    assert reversal_weight(0, 10) == 0
    assert reversal_weight(1, 10) == pytest.approx(1, abs=1e-4)
    assert reversal_weight(0.5, 10) == pytest.approx(0.98661, abs=1e-5)


def test_a_classifier_that_knows_nothing_loses_log_two():
    assert domain_loss(torch.zeros(3), torch.zeros(5)).item() == pytest.approx(0.693147, abs=1e-6)


def test_texts_of_different_length_are_filled_up_with_zeros():
    both = side_by_side(torch.ones(2, 3), torch.ones(1, 5), ragged=True)
    assert both.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert side_by_side(torch.ones(2, 3, 4), torch.ones(1, 5, 4), ragged=True).shape == (3, 5, 4)


def test_rows_of_another_width_are_refused_and_not_filled_up():
    with pytest.raises(
        Conflict, match=r"must have one shape, got \(8,\) in the stage's source and \(3,\) in the target"
    ):
        side_by_side(torch.ones(2, 8), torch.ones(2, 3), ragged=False)


def test_a_target_without_the_models_inputs_is_refused_in_a_sentence():
    target = Tensors({"other": torch.ones(64, 8)})
    with pytest.raises(Conflict, match=r"the model of stage 'toy' reads \['x'\], but the target yields \[\]"):
        compile(recipe(stage(objective=cross_entropy)), [DANN(target=target)])
