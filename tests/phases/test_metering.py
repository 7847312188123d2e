"""FLOPs against counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regraft.phases.metering import forward_flops, step_flops


@pytest.mark.inventory("flops", by="regraft adapt; the ledger and the report")
def test_a_perceptron_costs_two_operations_a_weight_and_example():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    assert forward_flops(model, {"x": torch.randn(5, 8)}) == 2 * (8 * 16 + 16 * 4)


@pytest.mark.inventory("flops", by="regraft adapt; the ledger and the report")
def test_a_convolution_costs_two_operations_a_weight_and_place():
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2, groups=2))
    first, second = 6 * 3 * 9 * 10 * 10, 4 * 3 * 9 * 4 * 4
    assert forward_flops(model, {"x": torch.randn(2, 3, 10, 10)}) == 2 * (first + second)


def test_a_step_costs_a_forward_pass_and_its_gradients_once_or_twice():
    model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(5, 8)
    first, second = 2 * 8 * 16, 2 * 16 * 4
    by_weight_alone = step_flops(lambda: model(x).sum(), 5)  # the data need no gradient
    assert by_weight_alone == 2 * first + 3 * second
    model[0].requires_grad_(False)
    assert step_flops(lambda: model(x).sum(), 5) == first + 2 * second


@pytest.mark.inventory("flops", by="regraft adapt; the ledger and the report")
def test_attention_costs_its_four_products_and_the_two_with_as_many_keys_as_tokens():
    width, tokens = 12, 7
    attention = nn.MultiheadAttention(width, 3, batch_first=True)

    class Itself(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    by_hand = 2 * tokens * 4 * width * width + 2 * 2 * tokens * tokens * width
    assert forward_flops(Itself(), {"x": torch.randn(2, tokens, width)}) == by_hand
