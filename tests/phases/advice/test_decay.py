"""Weight decay spares biases and the gains of norms, and a run lists them."""

import pytest
import torch
import toy
from torch import nn

from regraft.core import fit
from regraft.optim.build import DescentBuilder
from regraft.optim.optimizers import AdamW
from regraft.phases.advice.decay import decaying


@pytest.mark.inventory("weight-decay-range", by="train.optimizer: {AdamW: {weight_decay: 0.01}}")
def test_what_does_not_decay_is_listed_and_does_not_move():
    model = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 4))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def still(model, batch, clock):
        from regraft.core import Loss

        return Loss(0.0 * sum(p.sum() for p in model.parameters()))

    optimizer = AdamW(lr=0.1, weight_decay=0.01)
    recipe = toy.recipe(
        toy.stage(model=model, steps=1, objective=still, update=DescentBuilder(optimizer=optimizer, max_norm=None))
    )
    (said,) = decaying(recipe, optimizer)
    assert said.startswith("weight decay 0.01 on 2 of 6 trained tensors; not on biases and the gains of norms: ")
    assert said.endswith("0.bias, 1.weight, 1.bias, 2.bias")
    fit(recipe)
    for name, p in model.named_parameters():
        factor = 1 - 0.1 * 0.01 if p.ndim > 1 else 1.0
        torch.testing.assert_close(p.detach(), factor * before[name], rtol=1e-6, atol=1e-8)
    assert decaying(recipe, AdamW(weight_decay=0.0)) == []
