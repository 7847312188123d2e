"""Gradients with and without recomputation are the same bits; the budget decides by measured bytes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from toy import Tensors, adam, blobs, recipe, sgd, stage

from regraft.core import compile, fit
from regraft.core.seeding import generator
from regraft.core.train import start
from regraft.errors import ConfigError, Conflict
from regraft.models.blocks import blocks
from regraft.techniques.meta.maml import MAML
from regraft.techniques.speed.activation_checkpointing import (
    ActivationCheckpointing,
    Saved,
    fewest_recomputed,
    measure,
)
from regraft.testing import examples

WIDTH, ROWS = 64, 32


class Block(nn.Module):
    """A residual block with everything that makes recomputing hard: dropout and running statistics."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.inner = nn.BatchNorm1d(width), nn.Linear(width, 4 * width)
        self.outer, self.drop = nn.Linear(4 * width, width), nn.Dropout(0.3)

    def forward(self, x):
        return x + self.drop(self.outer(torch.relu(self.inner(self.norm(x)))))


class Tower(nn.Module):
    def __init__(self, depth=4, width=WIDTH, inputs=8):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Linear(inputs, width)
            self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
            self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def trained(techniques=(), *, model=None, steps=4, **changes):
    chosen = stage(model=model or Tower(), steps=steps, **changes)
    report = fit(compile(recipe(chosen), list(techniques)))
    return chosen.model, report


@pytest.mark.parametrize("count", ["all", 1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_and_running_statistics_are_bit_identical_to_training_without(count, precision):
    plain, _ = trained(update=adam(precision=precision))
    saving, _ = trained([ActivationCheckpointing(blocks=count)], update=adam(precision=precision))
    for (name, one), two in zip(plain.state_dict().items(), saving.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_blocks_compute_twice_as_often_while_it_is_on_and_are_themselves_after():
    model, calls = Tower(), []
    model.blocks[0].inner.register_forward_hook(lambda *_: calls.append(1))
    trained([ActivationCheckpointing(blocks=1)], model=model, steps=3)
    assert len(calls) == 6
    assert all("forward" not in block.__dict__ for block in model.blocks)


def test_evaluation_and_copies_made_meanwhile_do_not_recompute():
    run = start(compile(recipe(stage(model=Tower())), [ActivationCheckpointing(blocks="all")]))
    for hook in run.hooks:
        hook.on_start(run)
    model = run.stage.model.eval()
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.blocks[0].inner.weight.zero_()
        x = torch.randn(8, 8, generator=generator(1))
        assert not torch.equal(copied(x), model(x))
        assert torch.equal(copied(x), Tower.forward(copied, x))


def test_a_functional_call_with_other_weights_is_recomputed_with_those():
    technique = MAML(ways=3, shots=2, queries=2, tasks=2)
    model = [nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)) for _ in range(2)]
    model[1].load_state_dict(model[0].state_dict())
    fit(compile(recipe(stage(model=model[0], source=examples(), steps=2)), [technique]))
    saving = [technique, ActivationCheckpointing(blocks="all")]
    fit(compile(recipe(stage(model=model[1], source=examples(), steps=2)), saving))
    assert all(torch.equal(a, b) for a, b in zip(model[0].parameters(), model[1].parameters(), strict=True))


# ---- what is measured


def test_measured_bytes_are_those_counted_by_hand():
    network = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    run = start(recipe(stage(model=network, source=Tensors(blobs(), batch_size=ROWS))))
    saved = measure(run, blocks(network))
    # the first layer keeps its input, the ReLU its output; that output is the second layer's input and counts once
    assert saved.blocks == (ROWS * 8 * 4, ROWS * 64 * 4, 0)
    assert saved.inputs == (ROWS * 8 * 4, ROWS * 64 * 4, ROWS * 64 * 4)
    assert saved.outside >= ROWS * 4 * 4  # the log-probabilities of the loss


def test_measuring_leaves_weights_statistics_and_gradients_alone():
    model = Tower()
    before = copy.deepcopy(model.state_dict())
    run = start(recipe(stage(model=model)))
    measure(run, blocks(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_slice_of_a_batch_takes_a_share_of_its_memory():
    whole, quarter = (
        measure(start(recipe(stage(model=Tower(), update=sgd(micro=micro)))), blocks(Tower())).total for micro in (1, 4)
    )
    assert whole / 5 < quarter < whole / 3


@given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=6),
    st.integers(0, 99),
    st.integers(0, 700),
)
def test_as_few_blocks_as_fit_are_recomputed(pairs, outside, budget):
    saved = Saved(blocks=tuple(a for a, _ in pairs), inputs=tuple(b for _, b in pairs), outside=outside)
    count = fewest_recomputed(saved, budget)
    fits = [saved.peak(k) <= budget for k in range(len(pairs) + 1)]
    assert (count is None) == (not any(fits))
    if count is not None:
        assert fits[count]
        assert not any(fits[:count])


def test_the_budget_decides_and_the_sentence_has_its_numbers():
    total = measure(start(recipe(stage(model=Tower()))), blocks(Tower())).total
    _, enough = trained([ActivationCheckpointing(memory_gb=2 * total / 1e9)])
    assert "0 of 4 blocks are recomputed" in enough.notes[0]
    _, half = trained([ActivationCheckpointing(memory_gb=0.6 * total / 1e9)])
    chosen = int(half.notes[0].split()[1])
    assert 1 <= chosen <= 3
    plain, _ = trained()
    saving, _ = trained([ActivationCheckpointing(memory_gb=0.6 * total / 1e9)])
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), saving.parameters(), strict=True))


def test_peak_of_the_saved_bytes_falls_as_the_plan_says():
    """Counted by an oracle that knows nothing of blocks: the bytes autograd holds at the end of the forward pass."""
    model, saved = Tower(depth=6), []
    run = start(recipe(stage(model=model)))
    plan = measure(run, blocks(model))
    for count in (0, 3, 6):
        compiled = compile(recipe(stage(model=Tower(depth=6))), [ActivationCheckpointing(blocks=count or 1)])
        other = start(compiled if count else recipe(stage(model=Tower(depth=6))))
        for hook in other.hooks:
            hook.on_start(other)
        saved.append(held(other))
    expected = [plan.outside + sum(plan.inputs[:k]) + sum(plan.blocks[k:]) for k in (0, 3, 6)]
    assert all(math.isclose(a, b, rel_tol=0.1) for a, b in zip(saved, expected, strict=True)), (saved, expected)


def held(run):
    owned = {t.data_ptr() for t in (*run.stage.model.parameters(), *run.stage.model.buffers())}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in owned:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    run.stage.model.train()
    batch = next(run.stage.source.batches(run.stage.model))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run.stage.objective(run.stage.model, batch, run.clock)
    return sum(t.untyped_storage().nbytes() for t in kept.values())


# ---- refusals


def test_a_budget_that_nothing_fits_is_refused_with_the_numbers():
    with pytest.raises(
        ConfigError, match=r"memory_gb: the activations of a batch need .* GB with all 4 blocks recomputed"
    ):
        trained([ActivationCheckpointing(memory_gb=1e-6)])


def test_a_network_without_blocks_is_refused():
    with pytest.raises(Conflict, match="no chain of blocks was found in the Linear of stage 'toy'"):
        compile(recipe(stage(model=nn.Linear(8, 4))), [ActivationCheckpointing()])


def test_no_blocks_at_all_is_no_setting():
    with pytest.raises(ConfigError, match="blocks: at least 1, or auto, or all, got 0"):
        compile(recipe(stage(model=Tower())), [ActivationCheckpointing(blocks=0)])
