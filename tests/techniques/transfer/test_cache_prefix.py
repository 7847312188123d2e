"""CachePrefix saves work and changes nothing else."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
import toy
from torch import nn

from regraft.core import compile, fit
from regraft.core.checkpoint import Checkpointer, load
from regraft.data.sources import Examples
from regraft.data.text import EncodedText
from regraft.errors import Conflict
from regraft.losses.supervised import cross_entropy
from regraft.techniques.continual.ewc import EWC
from regraft.techniques.distil.distillation import Distillation
from regraft.techniques.domain.dann import DANN
from regraft.techniques.peft.lora import LoRA
from regraft.techniques.regularise.sam import SAM
from regraft.techniques.transfer.cache_prefix import CachePrefix
from regraft.techniques.transfer.discriminative import Discriminative
from regraft.techniques.transfer.last_k import LastK
from regraft.techniques.transfer.staged_thaw import StagedThaw

TARGET = toy.Tensors(toy.blobs(shift=1.0, seed=3))


def both_ways(techniques, make=toy.mlp, **changes):
    """(weights, losses, recipe) without and with the store."""
    ways = []
    for extra in ([], [CachePrefix()]):
        recipe = compile(toy.recipe(toy.stage(make(), **changes)), [*techniques, *extra])
        report = fit(recipe)
        ways.append((toy.weights(recipe.model), [record["loss"] for record in report.history], recipe))
    return ways


@pytest.mark.parametrize(
    "techniques",
    [
        [LastK(blocks=1)],
        [LastK(blocks=0), SAM()],
        [LastK(blocks=1), EWC(weight=10)],
        [LastK(blocks=1), Distillation(teacher=toy.mlp(seed=5))],
        [LastK(blocks=1), DANN(target=TARGET)],
        [StagedThaw(), Discriminative()],
        [StagedThaw(), EWC(weight=10)],
        [LoRA(rank=4, targets="2")],
    ],
    ids=lambda techniques: "+".join(type(technique).__name__ for technique in techniques),
)
def test_weights_and_losses_are_those_without_it_bit_for_bit(techniques):
    plain, cached = both_ways(techniques)
    assert cached[1] == plain[1]
    assert torch.equal(cached[0], plain[0])
    assert cached[2].stages[0].source.computed > 0, "nothing was stored"


def test_the_prefix_sees_each_example_once():
    _, (_, _, recipe) = both_ways([LastK(blocks=1)], steps=60)
    assert recipe.stages[0].source.computed == 256, "60 steps of 32 are 7.5 epochs of 256"


def test_each_stage_of_a_thaw_has_its_own_cut():
    stages = compile(toy.recipe(toy.stage()), [StagedThaw(), CachePrefix()]).stages
    assert [next(iter(dict(stage.model.named_children()))) for stage in stages] == ["3", "1", "0"]
    assert isinstance(stages[2].source, toy.Tensors), "nothing is frozen in the last stage"


def test_low_rank_adapters_move_the_cut_below_them():
    lower = compile(toy.recipe(toy.stage()), [LoRA(rank=4), CachePrefix()]).stages[0]
    upper = compile(toy.recipe(toy.stage()), [LoRA(rank=4, targets="2"), CachePrefix()]).stages[0]
    assert "0" in dict(lower.model.named_children())
    assert "0" not in dict(upper.model.named_children())
    assert "2" in dict(upper.model.named_children())


def test_a_stage_that_trains_everything_is_left_alone():
    recipe = toy.recipe(toy.stage())
    assert compile(recipe, [CachePrefix()]).stages == recipe.stages


def test_the_whole_model_stays_whole():
    recipe = toy.recipe(toy.stage())
    compiled = compile(recipe, [LastK(blocks=1), CachePrefix()])
    assert compiled.model is recipe.model
    suffix = {id(p) for p in compiled.stages[0].trainable().values()}
    assert suffix == {id(p) for p in [*recipe.model[2].parameters(), *recipe.model[4].parameters()]}


def test_weights_that_changed_are_never_answered_from_the_store():
    recipe = compile(toy.recipe(toy.stage()), [LastK(blocks=1), CachePrefix()])
    source, model = recipe.stages[0].source, recipe.model
    first = next(iter(source.batches(model)))
    with torch.no_grad():
        model[0].weight.add_(1.0)
    second = next(iter(source.batches(model)))
    assert torch.equal(first["id"], second["id"])
    raw = next(iter(source.base.batches(model)))["x"]
    assert torch.equal(second["x"], model[0](raw))
    assert not torch.equal(first["x"], second["x"])


def test_dropout_between_frozen_layers_is_not_stored():
    def make():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

    plain, cached = both_ways([LastK(blocks=0)], make, steps=20)
    assert torch.equal(cached[0], plain[0])
    assert len(cached[2].stages[0].model) == 4, "the cut is before the dropout"


def tokens() -> Examples:
    """Ragged texts of 3 to 11 tokens in four classes; lengths differ from batch to batch."""
    random = np.random.default_rng(1)
    lengths = random.integers(3, 12, 24)
    ids = random.integers(1, 50, lengths.sum()).astype(np.int32)
    encoded = EncodedText(ids, lengths, np.zeros(24, bool), pad_id=0)
    return Examples(encoded, random.integers(0, 4, 24), batch_size=8, seed=1, bucket=False)


def bert() -> nn.Module:
    return toy.bert_graft(blocks=4, depths=(1, 3, 4))


@pytest.mark.parametrize(
    "techniques",
    [
        [LastK(blocks=0)],
        [LastK(blocks=2), SAM()],
        [StagedThaw(groups_per_stage=1)],
        [LoRA(rank=2, targets="layer.3.*")],
    ],
    ids=lambda techniques: "+".join(type(technique).__name__ for technique in techniques),
)
def test_a_graft_over_ragged_text_trains_to_the_same_weights_with_its_lower_reads_stored(techniques):
    plain, cached = both_ways(techniques, bert, source=tokens(), steps=9, update=toy.sgd(lr=0.05))
    assert cached[1][:3] == plain[1][:3] or "StagedThaw" in str(techniques), "the first epoch has the same batches"
    assert cached[1] == pytest.approx(plain[1], abs=1e-5)
    torch.testing.assert_close(cached[0], plain[0], rtol=0, atol=1e-5)
    assert 0 < cached[2].stages[0].source.computed <= 24
    names = dict(cached[2].model.named_parameters())
    assert all(names[name] is p for name, p in cached[2].stages[0].model.named_parameters()), "names or tensors changed"


def test_a_resumed_run_goes_on_with_the_same_bits_over_ragged_text(tmp_path):
    def make():
        return compile(toy.recipe(toy.stage(bert(), source=tokens(), steps=11)), [LastK(blocks=2), CachePrefix()])

    whole = make()
    fit(whole, hooks=[Checkpointer(tmp_path, every=5, keep=5)])
    for folder in sorted(tmp_path.glob("step-*")):
        again = make()
        fit(again, hooks=[Checkpointer(tmp_path / "other", every=100)], resume=load(folder))
        assert torch.equal(toy.weights(again.model), toy.weights(whole.model)), folder.name


@pytest.mark.parametrize("steady", [True, False])
@pytest.mark.parametrize("techniques", [[LastK(blocks=2)], [StagedThaw(groups_per_stage=1)]], ids=["last", "thaw"])
def test_dropout_above_the_cut_is_on_or_off_as_without_a_store(techniques, steady):
    """Also where the model came in eval mode, and in later stages, whose store was filled before they began."""
    losses = []
    for extra in ([], [CachePrefix()]):
        model = bert().eval()
        model.steady = steady
        stage = toy.stage(model, source=tokens(), steps=9, update=toy.sgd(lr=0.05))
        report = fit(compile(toy.recipe(stage), [*techniques, *extra]), log_every=1)
        losses.append([record["loss"] for record in report.history])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


class Fleeting(toy.Tensors):
    examples: ClassVar[dict] = {}


class Tangle(nn.Module):
    """No chain of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def test_what_differs_each_time_and_what_cannot_be_cut_are_refused_in_a_sentence():
    fleeting = toy.stage(source=Fleeting(toy.blobs()))
    with pytest.raises(Conflict, match="draws examples that differ each time"):
        compile(toy.recipe(fleeting), [LastK(blocks=1), CachePrefix()])
    model = Tangle()
    model.a.requires_grad_(False)
    with pytest.raises(Conflict, match="no chain of blocks was found in the Tangle"):
        compile(toy.recipe(toy.stage(model, objective=cross_entropy)), [CachePrefix()])
