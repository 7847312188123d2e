"""How a model is called, and one pass for several readers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from toy import mlp

from regraft.core import forward
from regraft.core.forward import shared_forward
from regraft.core.seeding import generator, mix


class Counting(nn.Module):
    """Adds two inputs, after dropout, and counts its calls."""

    inputs = ("a", "b")

    def __init__(self):
        super().__init__()
        self.calls, self.weight, self.dropout = 0, nn.Parameter(torch.ones(4)), nn.Dropout(0.5)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.calls += 1
        return self.dropout(a) * self.weight + b


BATCH = {"a": torch.ones(3, 4), "b": torch.zeros(3, 4), "target_a": torch.ones(2, 4), "target_b": torch.ones(2, 4)}


def test_a_model_is_called_on_the_inputs_it_declares_and_a_plain_one_on_x():
    model = Counting().eval()
    assert torch.equal(forward(model, BATCH), torch.ones(3, 4))
    assert torch.equal(forward(model, BATCH, "target_"), 2 * torch.ones(2, 4))
    plain, x = mlp(), torch.randn(2, 8, generator=generator(0))
    assert torch.equal(forward(plain, {"x": x, "y": x}), plain(x))


def test_outside_a_block_every_call_runs():
    model = Counting()
    forward(model, BATCH)
    forward(model, BATCH)
    assert model.calls == 2


def test_inside_a_block_the_same_tensors_run_once_and_dropout_is_the_same():
    model = Counting()
    with shared_forward():
        first = forward(model, BATCH)
        with shared_forward():
            assert forward(model, dict(BATCH)) is first
    assert model.calls == 1


def test_other_tensors_other_modes_and_other_gradient_modes_are_other_calls():
    model = Counting()
    with shared_forward():
        forward(model, BATCH)
        forward(model, {key: value.clone() for key, value in BATCH.items()})
        forward(model, BATCH, "target_")
        model.eval()
        forward(model, BATCH)
        with torch.no_grad():
            forward(model, BATCH)
    assert model.calls == 5


def test_weights_swapped_by_a_functional_call_are_another_call():
    """The inner loop of MAML calls the same module on the same tensors with new weights."""

    class Bound(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, batch):
            return forward(self.model, batch)

    model = Counting().eval()
    with shared_forward():
        plain = forward(model, BATCH)
        doubled = functional_call(Bound(model), {"model.weight": 2 * torch.ones(4)}, (BATCH,))
    assert torch.equal(doubled, 2 * plain)


def test_an_output_that_was_told_is_handed_on():
    model = Counting()
    with shared_forward() as tell:
        tell(model, BATCH, torch.full((3, 4), 7.0))
        assert forward(model, BATCH)[0, 0] == 7.0
    assert model.calls == 0
    assert forward(model.eval(), BATCH)[0, 0] == 1.0


def test_seeds_of_neighbouring_numbers_have_nothing_in_common():
    seeds = {mix(a, b) for a in range(50) for b in range(50)}
    assert len(seeds) == 2500
    assert mix(1, 2) != mix(2, 1)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mix(0, 1) == mix(0, 1)
    assert mix(-1) != mix(1)
