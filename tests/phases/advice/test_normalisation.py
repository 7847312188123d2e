"""Advice on batch normalisation: with few examples in a slice, and in recurrent networks."""

from __future__ import annotations

import pytest
from torch import Tensor, nn
from toy import stage

from regraft.config.recipe import parse_recipe
from regraft.core import compile
from regraft.core.stage import Recipe
from regraft.models.networks import ConvNet
from regraft.phases.advice.lint import advise
from regraft.phases.advice.situation import Situation, facts_of
from regraft.techniques.stability.group_norm import GroupNorm

PARTS = "data: {main: {path: data.csv}}\nmodels: {main: {network: ConvNet}}\nstages: [{name: adapt, steps: 100}]\n"


class Reader(nn.Module):
    """A recurrent network with a normalisation of its states over the batch, or over each of them."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.rnn, self.norm, self.head = nn.GRU(4, 8, batch_first=True), norm(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.rnn(x)[0][:, -1]))


def found(model, *overrides, steady=False):
    facts = facts_of(stage(model), [], steady=steady)
    spec = parse_recipe(PARTS, overrides=overrides)
    seen = Situation(spec=spec, rows=5000, classes=("a", "b"), modality="image", stages=(facts,))
    return {finding.code: finding for finding in advise(seen)}


@pytest.mark.inventory("batchnorm", by="regraft lint")
def test_few_examples_in_a_slice_are_warned_of_where_there_is_batch_normalisation_to_move():
    net = ConvNet(width=4).build((3, 8, 8), 2)
    few = found(net, "train.batch_size=8")["BATCH2"]
    assert few.severity == "warning"
    assert "batch normalisations on 8 examples" in few.reason
    assert "GroupNorm" in few.fix
    assert "BATCH2" in found(net, "train.batch_size=32", "train.micro=4")
    assert "BATCH2" not in found(net, "train.batch_size=32")
    assert "BATCH2" not in found(net, "train.batch_size=8", steady=True)


@pytest.mark.inventory("batchnorm", by="regraft lint")
def test_batch_normalisation_in_a_recurrent_network_is_warned_of_at_any_batch_size():
    assert found(Reader(nn.BatchNorm1d))["BATCH3"].severity == "warning"
    assert "BATCH3" not in found(Reader(nn.LayerNorm))
    assert "BATCH3" not in found(ConvNet(width=4).build((3, 8, 8), 2))


@pytest.mark.inventory("groupnorm", by="technique GroupNorm")
def test_the_fix_that_is_advised_silences_the_warning():
    net = ConvNet(width=4).build((3, 8, 8), 2)
    one = stage(net)
    fixed = compile(Recipe(model=net, stages=(one,)), [GroupNorm()]).stages[0].model
    assert "BATCH2" in found(net, "train.batch_size=8")
    assert "BATCH2" not in found(fixed, "train.batch_size=8")
