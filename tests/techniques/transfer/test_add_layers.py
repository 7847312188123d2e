"""AddLayers: new layers that start as the identity, train alone, and come off again."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import toy
from torch import nn

from regraft.core import compile, fit
from regraft.errors import Conflict
from regraft.layers.extra import Extra, describe, shortened
from regraft.models.save import load_model, save_model
from regraft.optim.optimizers import AdamW
from regraft.techniques.transfer.add_layers import AddLayers


def maps() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = [nn.Sequential(nn.Conv2d(c, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for c in (1, 4)]
        return nn.Sequential(nn.Unflatten(1, (1, 2, 4)), *blocks, nn.Flatten(), nn.Linear(32, 4))


def compiled(model, technique, **options):
    update = toy.descent(AdamW(lr=0.01, weight_decay=0.5))
    return compile(toy.recipe(toy.stage(model, steps=4, update=update, **options)), [technique])


@pytest.mark.inventory("additive-ft", "add-new-layers", by="technique AddLayers")
@pytest.mark.parametrize("build", [toy.mlp, maps])
def test_it_starts_as_the_identity_trains_the_new_layers_and_leaves_every_bit_of_the_base(build):
    base, x = build(), toy.blobs(n=8)["x"]
    before = {name: value.clone() for name, value in base.state_dict().items()}
    recipe = compiled(base, AddLayers(layers=2, width=6))
    assert torch.equal(recipe.model.eval()(x), base.eval()(x))
    fit(recipe)
    after = recipe.model.state_dict()
    changed = {name for name, value in after.items() if name not in before or not torch.equal(value, before[name])}
    added = {name for name in after if ".extra." in name}
    head = f"{len(base) - 1}"
    assert changed == added | {f"{head}.weight", f"{head}.bias"}
    assert len(added) == 2 * 6  # norm, down and up, weight and bias of each
    assert not torch.equal(recipe.model.eval()(x), base.eval()(x))


@pytest.mark.inventory("add-new-layers", by="technique AddLayers")
def test_they_come_off_again():
    base, x = toy.mlp(), toy.blobs(n=8)["x"]
    recipe = compiled(base, AddLayers(width=6))
    fit(recipe)
    plain = shortened(recipe.model)
    assert plain.state_dict().keys() == base.state_dict().keys()
    assert torch.equal(plain(x), base(x))  # the tensors are shared, the trained head too
    assert any(isinstance(m, Extra) for m in recipe.model.modules()), "the model itself keeps them"
    assert describe(plain) is None


def test_copies_and_pickles_use_their_own_layers():
    recipe = compiled(toy.mlp(), AddLayers(width=6))
    fit(recipe)
    x = toy.blobs(n=8)["x"]
    for twin in (copy.deepcopy(recipe.model), pickle.loads(pickle.dumps(recipe.model))):
        assert torch.equal(twin(x), recipe.model(x))
        with torch.no_grad():
            twin[2].extra[0].up.weight.add_(1)
        assert not torch.equal(twin(x), recipe.model(x))


def test_with_the_base_trained_everything_trains():
    recipe = compiled(toy.mlp(), AddLayers(base="trained"))
    assert recipe.stages[0].trains == {name for name, _ in recipe.model.named_parameters()}


def test_the_width_is_four_times_the_channels_unless_said():
    model = compiled(toy.mlp(), AddLayers()).model
    assert describe(model).width == 4 * 32


@pytest.mark.inventory("add-new-layers", by="technique AddLayers")
def test_a_saved_graft_reads_back_with_its_layers(tmp_path):
    graft = toy.bert_graft(blocks=2, depths=(1, 2))
    stage = toy.stage(graft, steps=1)
    recipe = compile(toy.recipe(stage), [AddLayers(width=6)])
    with torch.no_grad():
        for name, parameter in recipe.model.named_parameters():
            if ".extra." in name:
                parameter.add_(0.3)
    save_model(recipe.model, tmp_path / "m", preprocessor_json={"kind": "test"}, labels=list("abcd"), task="multiclass")
    again, info = load_model(tmp_path / "m")
    assert [item["kind"] for item in info["surgery"]] == ["extra"]
    with torch.no_grad():
        assert torch.equal(again(**graft.example), recipe.model(**graft.example))
        assert not torch.equal(again(**graft.example), graft(**graft.example))


def test_a_model_without_blocks_is_refused():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.two(self.one(x))

    with pytest.raises(Conflict, match="AddLayers: the Flat in stage 'toy' has no chain of blocks"):
        compiled(Flat(), AddLayers())
