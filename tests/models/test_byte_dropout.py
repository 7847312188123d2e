"""Dropout whose mask is kept in bytes gives the numbers of torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from regraft.layers.byte_dropout import ByteDropout, use_byte_dropout


def made(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Output, gradient and bytes kept for the backward pass."""
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    own = x.clone().requires_grad_()
    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = layer(own)
    out.square().sum().backward()
    return out.detach(), own.grad, sum(kept)


@pytest.mark.parametrize("rate", [0.1, 0.9])
def test_outputs_and_gradients_are_the_same_bits_and_a_byte_is_kept(rate):
    x = torch.randn(7, 11, 33)
    want, slope, theirs = made(nn.Dropout(rate), x)
    got, ours, kept = made(ByteDropout(rate), x)
    assert torch.equal(got, want)
    assert torch.equal(ours, slope)
    assert (theirs, kept) == (x.nbytes, x.numel())


def test_of_two_bytes_both_are_left():
    x = torch.randn(7, 11, 33).to(torch.bfloat16)
    want, got = made(nn.Dropout(0.1), x), made(ByteDropout(0.1), x)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    assert got[2] == want[2] == x.nbytes


def test_nothing_is_dropped_in_eval_mode_or_at_rate_zero():
    x = torch.randn(5, 8)
    assert ByteDropout(0.5).eval()(x) is x
    assert torch.equal(ByteDropout(0.0)(x), x)


def test_layers_of_a_model_are_replaced_with_their_rate_and_mode_and_others_are_left():
    class Own(nn.Dropout):
        pass

    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Dropout(0.3), Own(0.2)), nn.Dropout(0.4, inplace=True))
    model[1][0].eval()
    use_byte_dropout(model)
    assert [type(layer) for layer in model[1]] == [ByteDropout, Own]
    assert (model[1][0].p, model[1][0].training) == (0.3, False)
    assert type(model[2]) is nn.Dropout
