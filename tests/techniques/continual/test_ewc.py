"""EWC: per-example Fisher information, and less forgetting."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy import blobs, mlp, recipe, sgd, stage

from regraft.core import Clock, Loss, compile, fit, trainable
from regraft.losses.supervised import cross_entropy
from regraft.models.fisher import fisher, fisher_by_loop, fisher_by_vmap
from regraft.techniques.continual.ewc import EWC, Elastic, escaped
from regraft.techniques.distil.distillation import Distillation
from regraft.techniques.domain.dann import DANN
from regraft.testing import network, toy_recipe

NOW = Clock(1, 1)


def forget(techniques, steps=120):
    one, two = blobs(seed=1), dict(blobs(seed=2))
    two["y"], two["x"] = (two["y"] + 1) % 4, two["x"].roll(3, 1)
    model = mlp()
    stages = [stage(model, steps=steps, data=data, name=name) for name, data in (("one", one), ("two", two))]
    fit(compile(recipe(*stages), techniques))
    return [float((model(d["x"]).argmax(-1) == d["y"]).float().mean()) for d in (one, two)]


def test_it_forgets_less_and_still_learns():
    (plain_one, plain_two), (one, two) = forget([]), forget([EWC(weight=1e3)])
    assert one > plain_one + 0.1, (plain_one, plain_two, one, two)
    assert two > 0.5, (plain_one, plain_two, one, two)


def names(model):
    return frozenset(trainable(model))


@pytest.mark.parametrize("way", [fisher_by_loop, fisher_by_vmap, fisher])
def test_the_fisher_information_is_that_of_a_closed_form(way):
    """Softmax regression: the gradient of example i is (p_i - onehot y_i) x_i^T."""
    model = nn.Linear(8, 4)
    data = blobs(40)
    got = way(cross_entropy, model, data, NOW, names(model))
    with torch.no_grad():
        error = model(data["x"]).softmax(-1) - nn.functional.one_hot(data["y"], 4)
        expected = torch.einsum("nc,nd->ncd", error, data["x"]).square().sum(0)
    torch.testing.assert_close(got["weight"], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got["bias"], error.square().sum(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("technique", [None, Distillation(teacher="teacher"), DANN(target="target")])
def test_the_vectorised_way_equals_the_loop_under_other_objectives(technique):
    compiled = compile(toy_recipe(network()), [technique] if technique else [])
    chosen = compiled.stages[0]
    chosen.model.eval()
    batch = {key: value[:9] for key, value in next(chosen.source.batches(chosen.model)).items()}
    loop, vectorised = (
        way(chosen.objective, chosen.model, batch, NOW, names(chosen.model)) for way in (fisher_by_loop, fisher_by_vmap)
    )
    assert loop.keys() == vectorised.keys()
    for name, value in loop.items():
        torch.testing.assert_close(value, vectorised[name], rtol=1e-4, atol=1e-7)


def test_slices_of_the_vectorised_way_do_not_change_the_sum(monkeypatch):
    model, data = mlp(), blobs(20)
    whole = fisher_by_vmap(cross_entropy, model, data, NOW, names(model))
    monkeypatch.setattr("regraft.models.fisher.MAX_VALUES", 4 * sum(p.numel() for p in model.parameters()))
    for name, value in fisher_by_vmap(cross_entropy, model, data, NOW, names(model)).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-7)


def test_what_cannot_be_vectorised_is_looped_over():
    def branching(model, batch, clock):
        loss = cross_entropy(model, batch, clock)
        return Loss(loss.value * (2.0 if bool(batch["y"][0] > 1) else 1.0))

    model, data = mlp(), blobs(12)
    with pytest.raises(RuntimeError):
        fisher_by_vmap(branching, model, data, NOW, names(model))
    loop = fisher_by_loop(branching, model, data, NOW, names(model))
    for name, value in fisher(branching, model, data, NOW, names(model)).items():
        assert torch.equal(value, loop[name])


def test_squares_of_the_mean_gradient_are_not_it():
    """On a model that fits its data they are smaller by far more than rounding, which is why a weight of 20 did nothing."""
    model, data = mlp(), blobs(256)
    fit(recipe(stage(model, steps=150, data=data)))
    per_example = fisher(cross_entropy, model, data, NOW, names(model))
    loss = cross_entropy(model, data, NOW).value
    mean = torch.autograd.grad(loss, list(model.parameters()))
    of_mean = sum(float(g.square().sum()) for g in mean)
    of_each = sum(float(value.sum()) for value in per_example.values()) / 256
    assert of_each > 20 * of_mean


def test_consolidation_uses_the_objective_without_the_penalty_and_the_samples_asked_for():
    seen = []

    def watched(model, batch, clock):
        if not model.training:
            seen.append(len(batch["x"]))
        return cross_entropy(model, batch, clock)

    compiled = compile(recipe(stage(steps=2, objective=watched)), [EWC(samples=40)])
    fit(compiled)
    assert seen == [1, 1]  # vectorised: one example as the code sees it, twice: a batch of 32 and one of 8
    assert type(compiled.stages[0].hooks[0].base).__name__ == "function"


def test_anchors_are_where_the_stage_ended_and_the_penalty_is_zero_there():
    model = mlp()
    compiled = compile(recipe(stage(model, steps=3)), [EWC(weight=10)])
    elastic = compiled.stages[0].objective.elastic
    fit(compiled)
    assert torch.equal(elastic.get_buffer("anchor_" + escaped("2.weight")), model[2].weight)
    assert elastic.penalty(model).item() == 0
    with torch.no_grad():
        model[2].weight.add_(0.1)
    expected = 0.5 * 10 * (elastic.get_buffer("fisher_" + escaped("2.weight")) * 0.01).sum()
    torch.testing.assert_close(elastic.penalty(model), expected, rtol=1e-3, atol=0)


def test_memory_scales_the_earlier_information():
    def information(memory):
        model = mlp()
        stages = [stage(model, steps=1, name=name, update=sgd(0.0)) for name in "ab"]
        compiled = compile(recipe(*stages), [EWC(samples=32, memory=memory)])
        fit(compiled)
        return compiled.stages[1].objective.elastic.get_buffer("fisher_" + escaped("2.weight"))

    torch.testing.assert_close(information(1.0), 2 * information(0.0))
    torch.testing.assert_close(information(0.5), 1.5 * information(0.0))


def test_dotted_names_stay_apart():
    assert len({escaped(name) for name in ("a.b__c", "a__b.c", "a.b.c", "a_b.c", "a.b_c", "a_d", "a.", "a_u")}) == 8
    model = nn.ModuleDict({"a__b": nn.Linear(2, 2), "a": nn.ModuleDict({"b": nn.Linear(2, 2)})})
    elastic = Elastic(model, names(model), EWC())
    assert len(list(elastic.buffers())) == 8
    assert elastic.penalty(model).item() == 0.0
