"""AdaptiveBackprop buys the most importance its FLOPs allow, and its steps cost what it says."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import toy
from techniques.test_on_transformers import Classifier, Texts
from torch import nn

from regraft.core import Hook, compile, fit
from regraft.core.flops import counted
from regraft.core.forward import forward
from regraft.core.modes import eval_mode
from regraft.core.train import advance, start
from regraft.errors import ConfigError, Conflict
from regraft.optim.optimizers import AdamW
from regraft.optim.schedules import Schedule
from regraft.techniques.domain.dann import DANN
from regraft.techniques.generative.gan import GAN
from regraft.techniques.regularise.weight_average import WeightAverage
from regraft.techniques.transfer.adaptive_backprop import (
    GRAIN,
    SEEN,
    AdaptiveBackprop,
    AdaptiveUpdate,
    Costs,
    affordable,
    paused,
    taped,
    without_fast_path,
)
from regraft.testing import Players, differing, model_state, network, toy_recipe

# ---- the choice


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_as_good_as_trying_all_sets(seed):
    random = np.random.default_rng(seed)
    weight, glue = random.integers(0, 100, 9).astype(float), random.integers(0, 40, 9)
    reach = np.concatenate([[0.0], np.cumsum(weight + glue)[:-1]])  # the first tensor is nearest the loss
    shuffled = random.permutation(9)
    whole = 2 * weight.sum() + weight.sum() + glue.sum()
    costs = Costs(forward=float(weight.sum()), whole=float(whole), weight=weight[shuffled], reach=reach[shuffled])
    importance = random.random(9)
    for rho in (0.4, 0.5, 0.7, 1.0):
        ours = affordable(importance, costs, rho)
        sets = (np.array(bits, dtype=bool) for bits in product([False, True], repeat=9))
        budget = rho * whole - costs.forward
        # prices are rounded up to a part of the budget, so the best of a budget that is smaller by a part a tensor is reached
        spent = costs.forward + budget * (1 - 10 / GRAIN)
        best = max((importance[s].sum() for s in sets if costs.of(s) <= spent), default=0.0)
        assert costs.of(ours) <= rho * whole or not ours.any()
        assert importance[ours].sum() >= best - 1e-12


def test_what_contributes_nothing_is_not_bought():
    costs = Costs(forward=1.0, whole=9.0, weight=np.zeros(3), reach=np.arange(3.0))
    assert affordable(np.array([0.0, 2.0, 0.0]), costs, 1.0).tolist() == [False, True, False]
    assert not affordable(np.zeros(3), costs, 1.0).any()


def test_tensors_that_cost_nothing_are_bought_even_where_nothing_is_left_to_spend():
    costs = Costs(forward=4.0, whole=8.0, weight=np.array([0.0, 2.0, 0.0]), reach=np.array([0.0, 0.0, 2.0]))
    assert affordable(np.ones(3), costs, 0.5).tolist() == [True, False, False]


# ---- the costs


class Attentive(nn.Module):
    """A torch attention layer, whose projections are called by nobody, products without a layer around them, tied embeddings."""

    inputs = ("x",)

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.gain = nn.Parameter(torch.ones(16))
        self.up = nn.Linear(16, 32)
        self.norm = nn.LayerNorm(32)
        self.down = nn.Linear(32, 16)
        self.out = nn.Linear(16, 20, bias=False)
        self.out.weight = self.embedding.weight
        self.unused = nn.Linear(16, 16)

    def forward(self, x):
        x = self.embedding(x)
        x = x + self.gain * self.attention(x, x, x, need_weights=False)[0]
        x = x + (x @ x.transpose(1, 2)).softmax(-1) @ x
        return self.out(x + self.down(self.norm(self.up(x)).relu())).mean(1)


class Convolutional(nn.Module):
    """Two convolutions with batch norm, pooled."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU()
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.layers(x).mean((2, 3)))


def examples_of(model):
    if isinstance(model, Classifier):
        return Texts().collate(np.arange(8))
    if isinstance(model, Attentive):
        return {"x": torch.randint(20, (8, 12), generator=torch.Generator().manual_seed(0))}
    if isinstance(model, Convolutional):
        return {"x": torch.randn(8, 3, 10, 10)}
    return {"x": torch.randn(8, 8)}


def flops_of_a_step(model, batch, kept):
    """Counted in a real forward and backward pass in which nothing but `kept` requires a gradient."""
    others = [p for p in model.parameters() if not any(p is k for k in kept)]
    with without_fast_path(), eval_mode(model), paused(others), counted() as counter:
        output = forward(model, batch).sum()
        if kept:
            output.backward(inputs=kept)
    return counter.get_total_flops()


@pytest.mark.parametrize("build", [network, Classifier, Convolutional, Attentive])
def test_predicted_costs_are_those_counted_in_real_steps(build):
    model, random = build(), np.random.default_rng(0)
    slack = (
        0.25 if build is Attentive else 0.15
    )  # its gain stands beside modules, so it counts as used where the network begins
    batch = examples_of(model)
    named = {n: p for n, p in model.named_parameters() if not n.startswith(("unused", "bert.pooler", "encoder.pooler"))}
    tensors = list(named.values())
    costs = taped(model, batch).costs(tensors)
    assert costs.forward == flops_of_a_step(model, batch, [])
    whole = flops_of_a_step(model, batch, tensors)
    assert costs.whole == pytest.approx(whole, rel=0.03)
    for _ in range(25):
        chosen = random.random(len(tensors)) < random.choice([0.05, 0.2, 0.6])
        if not chosen.any():
            continue
        real = flops_of_a_step(model, batch, [p for p, keep in zip(tensors, chosen, strict=True) if keep])
        wanted = [name for name, keep in zip(named, chosen, strict=True) if keep]
        assert costs.of(chosen) >= real * (1 - 1e-9), wanted
        assert costs.of(chosen) <= real + slack * whole, wanted


def test_costs_of_linear_layers_are_those_of_their_matrix_products():
    model = network()
    named = dict(model.named_parameters())
    found = taped(model, {"x": torch.randn(32, 8)}).costs(list(named.values()))
    costs, reach = (dict(zip(named, values.tolist(), strict=True)) for values in (found.weight, found.reach))
    assert found.forward == 2 * 32 * (8 * 16 + 16 * 16 + 16 * 16 + 16 * 4)
    assert found.whole == 2 * found.forward + 2 * 32 * (16 * 16 + 16 * 16 + 16 * 4)
    assert costs["3.weight"] == 2 * 32 * 16 * 16
    assert costs["3.bias"] == costs["4.weight"] == 0
    assert reach["8.weight"] == 0
    assert reach["6.weight"] == 2 * 32 * 16 * 4
    assert reach["0.weight"] == 2 * 32 * (16 * 4 + 2 * 16 * 16)


def test_counting_leaves_the_model_as_it_is():
    model = Convolutional()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    taped(model, examples_of(model))
    assert differing(before, dict(model.state_dict())) == []
    assert model.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


# ---- the steps


def stepping(recipe):
    """The stage's step, its update, and its batches."""
    run = start(recipe)
    (update,) = run.step.updates.values()
    assert isinstance(update, AdaptiveUpdate)
    return run, update


@pytest.mark.parametrize("rho", [0.4, 0.5, 0.7])
def test_a_step_costs_its_share_of_a_whole_one(rho):
    run, _ = stepping(compile(toy_recipe(network(), steps=20), [AdaptiveBackprop(rho=rho, weigh=0.05)]))
    flops = []
    for _ in range(5):
        with counted() as counter:
            advance(run, 1)
        flops.append(counter.get_total_flops())
    assert len(set(flops[1:])) == 1
    assert 0.3 * flops[0] < flops[1] <= rho * flops[0]


class Watching(Hook):
    """Notes after each step which tensors have moved, and what requires no gradient."""

    def __init__(self, model):
        self.model, self.last = model, {n: p.detach().clone() for n, p in model.named_parameters()}
        self.moved, self.frozen, self.built = [], [], []
        first = next(part for part in model.modules() if isinstance(part, nn.Linear))
        first.register_forward_hook(lambda module, args, output: self.built.append(output.requires_grad))

    def on_step(self, run, loss):
        now = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.moved.append(set(differing(self.last, now)))
        self.frozen.append([n for n, p in self.model.named_parameters() if not p.requires_grad])
        self.last = now


def watched(model, *techniques, steps=6, **options):
    hook = Watching(model)
    recipe = toy_recipe(model, steps=steps, **options)
    recipe = compile(replace(recipe, stages=recipe.stages[:1]), techniques)
    run, update = stepping(recipe)
    run.hooks = (*run.hooks, hook)
    hook.built.clear()
    advance(run)
    return hook, update


def test_between_weighings_only_what_was_chosen_moves_whatever_momentum_and_decay_say():
    model = network()
    everything = {name for name, _ in model.named_parameters()}
    optimizer = AdamW(lr=0.01, weight_decay=0.1)
    hook, update = watched(model, AdaptiveBackprop(rho=0.5, weigh=0.25, rounds=2), steps=8, optimizer=optimizer)
    assert hook.moved[0] == hook.moved[4] == everything
    first, second = hook.moved[1], hook.moved[5]
    assert all(moved == first for moved in hook.moved[2:4])
    assert first < everything
    assert {name.removeprefix("model.") for name in update.chosen} == second


def test_no_graph_is_built_below_the_deepest_chosen_tensor():
    hook, _ = watched(network(), AdaptiveBackprop(rho=0.5, weigh=0.3, rounds=2), steps=6)
    assert hook.built == [True, False, False, True, False, False]


def test_between_steps_everything_requires_gradients_as_ever():
    hook, _ = watched(network(), AdaptiveBackprop(rho=0.5, weigh=0.3, rounds=2))
    assert hook.frozen == [[]] * 6
    model = network()
    with pytest.raises(RuntimeError, match="stop"), paused(model.parameters()):
        raise RuntimeError("stop")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_average_of_weights_holds_those_that_paused_too():
    averaged, plain = network(), network()
    path = []

    class Path(Hook):
        def on_step(self, run, loss):
            path.append({name: p.detach().clone() for name, p in run.stage.model.named_parameters()})

    adaptive = AdaptiveBackprop(rho=0.5, weigh=0.3)
    for model, techniques in ((plain, [adaptive]), (averaged, [adaptive, WeightAverage(kind="uniform", last=1.0)])):
        recipe = toy_recipe(model, steps=6)
        recipe = compile(replace(recipe, stages=recipe.stages[:1]), techniques)
        fit(recipe, hooks=[Path()] if model is plain else [])
    for name, parameter in averaged.named_parameters():
        mean = torch.stack([weights[name] for weights in path]).mean(0)
        torch.testing.assert_close(parameter.detach(), mean, rtol=1e-5, atol=1e-6)


def test_gains_add_up_to_what_a_small_step_takes_off_the_loss():
    model = network()
    recipe = compile(toy_recipe(model, steps=4, optimizer=AdamW(lr=1e-5)), [AdaptiveBackprop(rho=0.5, weigh=0.25)])
    run, update = stepping(recipe)
    batch = next(iter(run.stage.source.batches(model)))
    before = [p.detach().clone() for p in update.named.values()]
    objective = run.stage.objective
    loss = update.gradients(lambda part: objective(model, part, run.clock), batch).value
    update.base.apply(run.clock)
    after = objective(model, batch, run.clock).value
    assert update._gains(before).sum() == pytest.approx(float((loss - after).detach()), rel=0.02)


def test_contributions_are_added_up_over_the_last_steps_of_a_weighing():
    recipe = compile(toy_recipe(network(), steps=40), [AdaptiveBackprop(rho=0.5, weigh=0.5)])
    run, update = stepping(recipe)
    seen, gains = [], update._gains

    def noted(before):
        seen.append((update.done, gains(before)))
        return seen[-1][1]

    update._gains = noted
    advance(run, 30)
    assert [step for step, _ in seen] == list(range(20 - SEEN, 20))
    total = np.maximum(sum(gain for _, gain in seen), 0.0)
    expected = affordable(total, update.costs, 0.5)
    assert update.chosen == [name for name, keep in zip(update.named, expected, strict=True) if keep]


@pytest.mark.parametrize("stop", range(1, 12))
def test_a_run_resumed_within_a_round_goes_on_with_the_same_bits(stop):
    technique = AdaptiveBackprop(rho=0.5, weigh=0.4, rounds=2)
    whole, again = (compile(toy_recipe(network(0.2), steps=12), [technique]) for _ in range(2))
    run = advance(start(whole), stop)
    state = copy.deepcopy(run.state_dict())
    advance(run)
    fit(replace(again, stages=again.stages[:1]), resume=state)
    assert differing(model_state(whole), model_state(again)) == []


class LateStart(Schedule):
    """Nothing moves in the first two steps."""

    def shape(self, step, total):
        return float(step >= 0.2 * total)


def test_a_step_that_moved_nothing_is_weighed_again():
    model = network()
    recipe = toy_recipe(model, steps=10)
    stage = replace(recipe.stages[0], update=replace(recipe.stages[0].update, schedule=LateStart()))
    run, update = stepping(compile(replace(recipe, stages=(stage,)), [AdaptiveBackprop(rho=0.5, weigh=0.1)]))
    advance(run, 2)
    assert update.weighing
    assert update.chosen is None
    advance(run, 1)
    assert not update.weighing
    assert update.chosen


def test_parameters_of_an_objective_train_in_every_step():
    recipe = compile(
        toy_recipe(network(), steps=4), [DANN(target="target", width=8), AdaptiveBackprop(rho=0.5, weigh=0.25)]
    )
    run, _ = stepping(recipe)
    advance(run, 1)
    objective = run.stage.objective
    before = {name: p.detach().clone() for name, p in objective.named_parameters()}
    advance(run, 1)
    assert before
    assert set(differing(before, {n: p.detach() for n, p in objective.named_parameters()})) == set(before)


def test_a_frozen_part_counts_as_saved_already():
    model = network()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("8"))
    plain = network()
    plain.load_state_dict(model.state_dict())
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name.startswith("8"))
    adaptive, usual = toy_recipe(model, steps=4), toy_recipe(plain, steps=4)
    adaptive = compile(adaptive, [AdaptiveBackprop(rho=0.5, weigh=0.25)])
    fit(adaptive)
    fit(usual)
    assert (
        differing(model_state(adaptive), model_state(usual)) == []
    )  # the head alone is far below half of a whole step


# ---- refusals


def test_a_share_below_the_forward_pass_is_refused_when_the_stage_starts():
    recipe = compile(toy_recipe(network(), steps=4), [AdaptiveBackprop(rho=0.35, weigh=0.25)])
    with pytest.raises(
        ConfigError, match=r"AdaptiveBackprop\.rho: must be at least 0\.36 .* forward pass is 35% of a step, got 0\.35"
    ):
        start(recipe)


def test_a_step_with_updates_of_its_own_is_refused():
    with pytest.raises(Conflict, match="makes updates of its own"):
        compile(toy_recipe(Players()), [GAN(rounds=2), AdaptiveBackprop()])


def test_a_source_without_the_inputs_of_the_model_is_refused():
    recipe = compile(toy.recipe(toy.stage(steps=4)), [AdaptiveBackprop(weigh=0.25)])
    recipe.stages[0].source.inputs = {"y": "id"}
    with pytest.raises(Conflict, match=r"reads 'x', but its source yields \['y'\]"):
        start(recipe)
