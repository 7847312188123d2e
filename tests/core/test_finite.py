"""Numbers that are not finite are found whatever they are in, and traced to where they come from."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from toy import mlp, recipe, stage

from regraft.core import Loss, fit
from regraft.core.finite import Finite, bad_weights, listed, not_finite
from regraft.core.train import start
from regraft.errors import RunError
from regraft.testing import assert_sentence

BAD = (float("nan"), float("inf"), -float("inf"))
TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize(("value", "kind"), list(itertools.product(BAD, TYPES)))
def test_one_number_in_any_tensor_of_any_type_is_enough(value, kind):
    tensors = [torch.randn(5), torch.zeros((), dtype=kind), torch.ones(3, 4, dtype=kind).t(), torch.zeros(0)]
    check = Finite(tensors)
    assert check(tensors)
    for tensor in tensors[:3]:
        bad = [t.clone() for t in tensors]
        place = next(i for i, t in enumerate(tensors) if t is tensor)
        bad[place][(-1,) * tensor.ndim] = value
        assert not check(bad)
        assert check(tensors), "it remembered what is over"
    assert not check(tensors, torch.tensor(value))
    assert not Finite(tensors[:1])(tensors[:1], torch.tensor(value, dtype=kind))
    assert check(tensors, torch.tensor(1.0))


def test_no_bit_of_what_is_asked_about_changes():
    numbers = torch.tensor([0.0, -0.0, 1e-45, -1e-42, 3.4e38, -3.4e38, 1.0 / 3.0])
    before = numbers.clone()
    assert Finite([numbers])([numbers], torch.tensor(3.4e38)), "large is not infinite"
    assert torch.equal(numbers.view(torch.int32), before.view(torch.int32))


def test_the_names_of_tensors_and_how_they_are_listed():
    tensors = {"a": torch.tensor([1.0, BAD[0]]), "b": torch.tensor([1]), "c": None, "d": torch.tensor(BAD[1])}
    assert not_finite(tensors.items()) == ["a", "d"]
    assert listed(["a"], "weight", "weights") == "weight 'a' is"
    assert listed(list("abcd"), "weight", "weights") == "4 weights ('a', 'b', 'c', ...) are"


class Overflow(nn.Module):
    """Gives inf for the inputs of one batch, or lets a gradient through that is not finite."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.calls = kind, 0

    def forward(self, x):
        self.calls += 1
        if self.calls < 4 or (self.kind == "once" and self.calls > 4):
            return x
        if self.kind == "backward":
            return x + (x.detach() * 0 + (x - x.detach())).abs().sqrt() * 0  # 0 * d sqrt(0) is nan
        return x * float("inf")


def message(objective=None, *, model=None, steps=9, **changes) -> str:
    options = {"objective": objective} if objective else {}
    with pytest.raises(RunError) as error:
        fit(recipe(stage(model, steps=steps, **options, **changes)))
    assert_sentence(str(error.value))
    return str(error.value)


def with_layer(kind: str) -> nn.Module:
    below, relu, middle, second, head = mlp()
    return nn.Sequential(nn.Sequential(below, relu), nn.Sequential(middle, Overflow(kind), second), head)


@pytest.mark.inventory("nan-guard", by="regraft train")
def test_the_innermost_layer_whose_output_is_not_finite_is_named():
    text = message(model=with_layer("forward"))
    assert "the loss became nan at step 4 (the output of layer '1.1' is the first that is not finite)" in text


@pytest.mark.inventory("nan-guard", by="regraft train")
def test_a_gradient_is_named_by_the_parameter_nearest_to_the_loss():
    text = message(model=with_layer("backward"))
    assert text.startswith(
        "stage 'toy': the gradient of '1.0.bias' (and of 3 others) is not finite at step 4 (the forward pass is"
    )


def test_what_a_second_pass_does_not_show_is_said_to_be_no_function_of_the_batch():
    assert "a second pass over the same batch was finite, so the device" in message(model=with_layer("once"))


@pytest.mark.inventory("nan-guard", by="regraft train")
def test_terms_of_the_loss_and_rows_of_the_batch_are_named():
    def two(model, batch, clock):
        penalty = batch["x"][:, 0].clamp(min=0).mean() if clock.step < 2 else batch["x"].new_tensor(float("inf"))
        return Loss(model(batch["x"]).mean() + penalty, 32.0, {"fit": batch["x"].mean(), "penalty": penalty})

    assert "(term of the loss 'penalty' is not finite; the outputs of all layers are finite)" in message(two)
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    x[[3, 77, 100, 200], 2] = float("nan")
    text = message(data={"x": x, "y": torch.zeros(256, dtype=torch.long)}, steps=3)
    assert "'x' of the batch is not finite in row" in text
    assert "(example" in text
    assert "repair or drop these rows" in text


def test_frozen_weights_are_looked_at_where_a_cause_is_sought():
    model = mlp()
    model[0].requires_grad_(False)
    with torch.no_grad():
        model[0].weight[2, 1] = float("nan")
    run = start(recipe(stage(model)))
    assert bad_weights(run) == ["0.weight"]
    assert "(weight '0.weight' is not finite before it)" in message(model=model)
