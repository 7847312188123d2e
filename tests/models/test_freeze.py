from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from regraft.core.modes import train_mode
from regraft.errors import ModelError
from regraft.models.freeze import freeze, frozen_prefix, unfreeze
from regraft.models.networks import ConvNet


def net():
    return nn.Sequential(
        nn.Linear(4, 8),
        nn.BatchNorm1d(8),
        nn.Dropout(0.5),
        nn.Linear(8, 8),
        nn.BatchNorm1d(8),
        nn.Dropout(0.5),
        nn.Linear(8, 2),
    )


@pytest.mark.parametrize("through", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_frozen_part_keeps_its_bits_through_training_with_decay_dropout_and_batch_norm(through):
    model = net()
    freeze(model, depth=3)
    model = through(model)
    before = {name: value.clone() for name, value in model[:3].state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.5)
    x, y = torch.randn(16, 4), torch.randint(0, 2, (16,))
    for _ in range(3):
        train_mode(model)
        assert torch.equal(model[:3](x), model[:3](x))  # no dropout below
        assert not torch.equal(model(x), model(x))  # dropout above
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    after = model[:3].state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert int(model[4].num_batches_tracked) > 0


def test_prefix_is_counted_up_to_the_first_thing_that_trains():
    model = ConvNet(width=4).build((1, 8, 8), 3)
    assert frozen_prefix(model) == 0
    freeze(model, depth=4)
    assert frozen_prefix(model) == 4
    unfreeze(model, ["blocks.1.norm2.bias"])
    assert frozen_prefix(model) == 1
    unfreeze(model, ["stem"])
    assert frozen_prefix(model) == 0
    freeze(model, ["stem", "blocks"])
    assert frozen_prefix(model) == 6


def test_names_that_are_not_there_are_refused_with_the_nearest():
    with pytest.raises(ModelError, match="no module or parameter 'blokcs'; did you mean 'blocks'"):
        freeze(ConvNet(width=4).build((1, 8, 8), 3), ["blokcs"])
    with pytest.raises(ModelError, match="from 0 to 7"):
        freeze(net(), depth=9)
