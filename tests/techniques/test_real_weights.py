"""Transfer techniques on pretrained networks: what is frozen keeps its bits, and a stored prefix changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toy

from regraft.core import Recipe, Stage, compile, fit
from regraft.core.forward import forward
from regraft.core.seeding import generator
from regraft.data.sources import Examples
from regraft.losses.supervised import cross_entropy
from regraft.models.graft import Graft
from regraft.models.load import load_backbone
from regraft.optim.optimizers import SGD, AdamW
from regraft.techniques.peft.adapter import Adapter
from regraft.techniques.peft.lora import LoRA
from regraft.techniques.regularise.sam import SAM
from regraft.techniques.transfer.cache_prefix import CachePrefix
from regraft.techniques.transfer.last_k import LastK
from regraft.techniques.transfer.staged_thaw import StagedThaw
from regraft.techniques.transfer.train_only import NormOnly

N = 12


class Pictures:
    inputs = ("pixel_values",)
    lengths = np.ones(N, dtype=np.int64)

    def __init__(self) -> None:
        self.pixels = torch.randn(N, 3, 96, 96, generator=generator(2))

    def __len__(self) -> int:
        return N

    def collate(self, rows):
        return {"pixel_values": self.pixels[torch.from_numpy(rows)]}


class Texts:
    inputs = ("input_ids", "attention_mask")

    def __init__(self) -> None:
        g = generator(1)
        self.lengths = torch.randint(4, 14, (N,), generator=g).numpy()
        self.ids = torch.randint(1000, 20000, (N, 14), generator=g)

    def __len__(self) -> int:
        return N

    def collate(self, rows):
        lengths = torch.from_numpy(self.lengths[rows])
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        return {"input_ids": self.ids[rows][:, : mask.shape[1]] * mask, "attention_mask": mask}


def recipe_for(model, encoded, optimizer, steps=5) -> Recipe:
    source = Examples(encoded, torch.arange(N) % 3, batch_size=4, seed=0)
    stage = Stage(
        name="s", model=model, source=source, objective=cross_entropy, update=toy.descent(optimizer), steps=steps
    )
    return Recipe(model=model, stages=(stage,))


@pytest.fixture
def mobilenet(shared_data):
    backbone = load_backbone(str(shared_data("weights_mobilenetv1_025_vww")), modality="image")
    return lambda: recipe_for(
        Graft(backbone, depths=(13, 20, 26), pools=("mean",), num_outputs=3),
        Pictures(),
        AdamW(lr=1e-3, weight_decay=0.5),
    )


def changed_by(recipe: Recipe) -> set[str]:
    before = {name: value.clone() for name, value in recipe.model.state_dict().items()}
    fit(recipe)
    return {name for name, value in recipe.model.state_dict().items() if not torch.equal(value, before[name])}


def name_of(technique) -> str:
    return type(technique).__name__


@pytest.mark.parametrize("technique", [LoRA(rank=4), NormOnly(), Adapter(width=4), LastK(blocks=0)], ids=name_of)
def test_mobilenet_changes_in_what_trains_only_statistics_and_decay_included(mobilenet, technique):
    recipe = compile(mobilenet(), [technique])
    assert changed_by(recipe) == recipe.stages[0].trains


def test_the_last_blocks_of_mobilenet_train_and_not_a_bit_below_changes(mobilenet):
    recipe = compile(mobilenet(), [LastK(blocks=2)])
    assert {".".join(name.split(".")[:3]) for name in changed_by(recipe)} == {
        "backbone.layer.24", "backbone.layer.25", "head.weight", "head.bias",
    }  # fmt: skip


@pytest.mark.parametrize("technique", [LoRA(rank=4), Adapter(width=4)], ids=name_of)
def test_mobilenet_starts_at_the_bits_of_the_base(mobilenet, technique):
    recipe = mobilenet()
    batch = next(iter(recipe.stages[0].source.batches(recipe.model)))
    assert torch.equal(forward(compile(recipe, [technique]).model.eval(), batch), forward(recipe.model.eval(), batch))


def trained(recipe: Recipe):
    report = fit(recipe)
    return {name: value.clone() for name, value in recipe.model.state_dict().items()}, [
        r["loss"] for r in report.history
    ]


@pytest.mark.parametrize(
    "techniques",
    [
        [LastK(blocks=2)],
        [LastK(blocks=1), SAM()],
        [StagedThaw(groups_per_stage=1)],
        [LoRA(rank=4, targets="layer.19.convolution")],
    ],
    ids=lambda techniques: "+".join(type(technique).__name__ for technique in techniques),
)
def test_mobilenet_with_a_stored_prefix_trains_to_the_same_bits(shared_data, techniques):
    ends = []
    for extra in ([], [CachePrefix()]):
        backbone = load_backbone(str(shared_data("weights_mobilenetv1_025_vww")), modality="image")
        model = Graft(backbone, depths=(13, 20, 26), pools=("mean",), num_outputs=3)
        recipe = compile(recipe_for(model, Pictures(), AdamW(lr=1e-3)), [*techniques, *extra])
        ends.append(trained(recipe))
    assert ends[0][1] == ends[1][1]
    assert all(torch.equal(value, ends[1][0][name]) for name, value in ends[0][0].items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "techniques",
    [[LastK(blocks=2)], [StagedThaw(groups_per_stage=1)], [LoRA(rank=4, targets="layer.4.attention.self.*")]],
    ids=lambda techniques: "+".join(type(technique).__name__ for technique in techniques),
)
def test_minilm_with_a_stored_prefix_trains_to_the_same_weights_within_rounding(minilm, techniques):
    ends = []
    for extra in ([], [CachePrefix()]):
        backbone = load_backbone(str(minilm), modality="text")
        model = Graft(backbone, depths=(2, 4, 6), pools=("mean",), num_outputs=3)
        recipe = compile(recipe_for(model, Texts(), SGD(lr=0.01), steps=6), [*techniques, *extra])
        ends.append(trained(recipe))
    assert ends[0][1] == pytest.approx(ends[1][1], abs=1e-5)
    for name, value in ends[0][0].items():
        torch.testing.assert_close(ends[1][0][name], value, rtol=0, atol=1e-5)
