"""L0Penalty: the gates by their formulas, exact zeros in a plain model, and what is seen on the way."""

from __future__ import annotations

import pytest
import torch
import toy
from safetensors.torch import load_file
from torch import nn

from regraft.config.recipe import recipe_from_tree
from regraft.core import Hook, compile, fit
from regraft.core.descent import descents
from regraft.core.train import start
from regraft.errors import Conflict
from regraft.layers.hard_concrete import HIGH, LOW, TEMPERATURE, open_probability, sampled_gates, settled_gates
from regraft.optim.build import DescentBuilder
from regraft.optim.optimizers import AdamW
from regraft.phases.train import train_job
from regraft.techniques.regularise.l0_penalty import L0Penalty
from regraft.techniques.regularise.weight_average import WeightAverage
from regraft.techniques.transfer.last_k import LastK


def draws(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).clamp(1e-9, 1 - 1e-9)


@pytest.mark.parametrize("log_alpha", [-3.0, -0.5, 0.0, 2.0])
def test_the_stated_probability_is_how_often_a_sampled_gate_is_open(log_alpha):
    alpha = torch.tensor(log_alpha, dtype=torch.float64)
    gates = sampled_gates(alpha.expand(200_000), draws(200_000))
    stated = open_probability(alpha).item()
    assert (gates > 0).double().mean().item() == pytest.approx(stated, abs=4 * (stated * (1 - stated) / 200_000) ** 0.5)
    assert gates.min() >= 0
    assert gates.max() <= 1
    if log_alpha == 2.0:
        assert (gates == 1).any()


def test_gates_are_those_of_the_paper_and_settle_at_zero_and_one():
    alpha, u = torch.tensor([0.3], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
    s = 1 / (1 + torch.exp(-((u / (1 - u)).log() + alpha) / TEMPERATURE))
    torch.testing.assert_close(sampled_gates(alpha, u), s * (HIGH - LOW) + LOW)
    assert settled_gates(torch.tensor([-9.0, -2.4, 0.0, 2.4, 9.0])).tolist() == pytest.approx(
        [0, 0, 0.5, 1, 1], abs=1e-6
    )


def test_gradients_are_those_of_finite_differences():
    u = draws(6, seed=1).clamp(0.35, 0.65)  # away from the ends, where a gate has no slope
    alpha = torch.linspace(-0.3, 0.3, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: sampled_gates(a, u), (alpha,))
    assert torch.autograd.gradcheck(open_probability, (alpha,))
    assert torch.autograd.gradcheck(settled_gates, (alpha,))


def trained(*techniques, steps=300, hooks=(), **changes):
    model = toy.mlp()
    report = fit(compile(toy.recipe(toy.stage(model, steps=steps, hooks=hooks, **changes)), techniques))
    return model, report


def accuracy(model):
    held = toy.blobs(n=1000, seed=9)
    return (model(held["x"]).argmax(1) == held["y"]).float().mean().item()


@pytest.mark.inventory("l0-prox", by="technique L0Penalty")
def test_rows_become_exactly_zero_while_the_network_still_does_its_work():
    plain, _ = trained()
    sparse, report = trained(L0Penalty(weight=2e-3))
    layers = [module for module in sparse if isinstance(module, nn.Linear)]
    dead = [(layer.weight == 0).all(1) for layer in layers]
    assert sum(int(rows.sum()) for rows in dead[:-1]) >= 16  # of 64
    assert not dead[-1].any()  # the head has no gates
    for layer, rows in zip(layers[:-1], dead[:-1], strict=True):
        assert (layer.bias[rows] == 0).all()
    assert not any((module.weight == 0).any() for module in plain if isinstance(module, nn.Linear))
    assert accuracy(sparse) > accuracy(plain) - 0.03
    assert "weights with a gate are exactly 0" in report.notes[0]


@pytest.mark.inventory("l0-prox", by="technique L0Penalty")
def test_the_expected_share_of_open_weights_is_in_the_log_and_falls_with_the_price():
    ends = []
    for weight in (1e-6, 5e-3):
        _, report = trained(L0Penalty(weight=weight), steps=100)
        shares = [record["open_share"] for record in report.history]
        assert shares[0] == pytest.approx(open_probability(torch.tensor(9.0).log()).item(), abs=0.01)  # start: 0.9
        ends.append(shares[-1])
    assert ends[0] > 0.8 > ends[1]


def test_single_weights_have_gates_as_well():
    model, report = trained(L0Penalty(weight=1e-3, unit="weights"))
    weights = torch.cat([m.weight.detach().flatten() for m in model if isinstance(m, nn.Linear)])
    zeros = int((weights == 0).sum())
    assert zeros > 0.1 * len(weights)
    assert f"{zeros:,} of {len(weights):,} weights" in report.notes[0]
    assert accuracy(model) > 0.85


class Watcher(Hook):
    """Looks at the model between steps, as validation does."""

    def __init__(self):
        self.zeros = []

    def on_step(self, run, loss):
        self.zeros.append(int((run.stage.model[0].weight == 0).sum()))


def test_validation_on_the_way_sees_gated_weights_and_training_goes_on_with_its_own():
    watcher, after = Watcher(), Watcher()
    model = toy.mlp()
    stage = toy.stage(model, steps=200, hooks=(watcher,))
    fit(compile(toy.recipe(stage), [L0Penalty(weight=5e-3)]), hooks=(after,))
    assert watcher.zeros[-1] > 0
    assert watcher.zeros[0] == 0
    assert after.zeros == [0] * 200  # the hooks of the run, such as the checkpointer, come behind both
    assert int((model[0].weight == 0).sum()) == watcher.zeros[-1]


def test_the_gates_are_put_into_averaged_weights():
    model, _ = trained(WeightAverage(decay=0.9), L0Penalty(weight=2e-3))
    assert (model[0].weight == 0).all(1).any() or (model[2].weight == 0).all(1).any()


def test_what_is_frozen_has_no_gates():
    model, before = toy.mlp(), toy.mlp()
    fit(compile(toy.recipe(toy.stage(model, steps=200)), [LastK(blocks=1), L0Penalty(weight=1e-2)]))
    assert torch.equal(model[0].weight, before[0].weight)
    with pytest.raises(Conflict, match="L0Penalty: stage 'toy' trains no linear layer or convolution below the head"):
        compile(toy.recipe(toy.stage()), [LastK(blocks=0), L0Penalty()])


@pytest.mark.inventory("l0-prox", by="technique L0Penalty, regraft train")
def test_the_saved_model_is_plain_and_holds_the_zeros(tmp_path):
    tree = {
        "data": {"main": {"path": "digits"}},
        "models": {"main": {"network": {"ConvNet": {"width": 8}}, "image_size": 8}},
        "train": {"batch_size": 64, "optimizer": {"AdamW": {"lr": 3e-3}}},
        "stages": [{"name": "train", "steps": 120}],
        "techniques": [{"L0Penalty": {"weight": 0.005, "speed": 20}}],
        "validate": {"times": 2},
    }
    run = train_job(recipe_from_tree(tree), tmp_path / "run")
    weights = load_file(run.path / "model" / "model.safetensors")
    assert not any("gate" in name or "scaled" in name for name in weights)
    dead = sum(int((w.flatten(1) == 0).all(1).sum()) for n, w in weights.items() if w.ndim == 4)
    assert dead > 0
    notes = run.done("train")
    assert any("weights with a gate are exactly 0" in note for note in notes["notes"])
    last, final = notes["validations"]["train"][-1], run.read_json("metrics.json")["final"]["valid"]
    assert last["score"] == pytest.approx(final["accuracy"]["value"], abs=1e-6)


def test_weight_decay_opens_and_closes_no_gate():
    update = DescentBuilder(optimizer=AdamW(lr=0.01, weight_decay=0.1))
    for unit in ("rows", "weights"):
        run = start(compile(toy.recipe(toy.stage(update=update)), [L0Penalty(unit=unit)]))
        (descent,) = descents(run.step)
        gates = {id(p) for name, p in descent.named.items() if "scaled" in name}
        decays = {
            group["weight_decay"] for group in descent.optimizer.param_groups for p in group["params"] if id(p) in gates
        }
        assert decays == {0.0}
