"""A stored prefix of MiniLM gives the losses of a run without a store, bit for bit, on texts of any length."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import toy

from regraft.core import Recipe, Stage, compile, fit
from regraft.data.sources import Examples
from regraft.data.text import EncodedText
from regraft.losses.supervised import cross_entropy
from regraft.models.attention import use_plain_attention
from regraft.models.graft import Graft
from regraft.models.load import load_backbone
from regraft.optim.optimizers import AdamW
from regraft.phases.training import set_steady
from regraft.techniques.continual.ewc import EWC
from regraft.techniques.distil.distillation import Distillation
from regraft.techniques.domain.dann import DANN
from regraft.techniques.peft.lora import LoRA
from regraft.techniques.regularise.sam import SAM
from regraft.techniques.transfer.cache_prefix import CachePrefix
from regraft.techniques.transfer.last_k import LastK
from regraft.techniques.transfer.staged_thaw import StagedThaw

pytestmark = pytest.mark.slow
N, CLASSES = 96, 4


def texts(seed: int = 0) -> Examples:
    """Texts of 3 to 29 tokens; batches of 32 of like length, so that a text meets other companions in each epoch."""
    random = np.random.default_rng(seed)
    lengths = random.integers(3, 30, N)
    ids = random.integers(1000, 20_000, lengths.sum()).astype(np.int32)
    encoded = EncodedText(ids, lengths, np.zeros(N, bool), pad_id=0)
    return Examples(encoded, random.integers(0, CLASSES, N), batch_size=32, seed=seed)


@pytest.fixture(scope="module")
def base(minilm) -> Graft:
    backbone = load_backbone(str(minilm), modality="text")
    use_plain_attention(backbone.module, backbone.example)
    return Graft(backbone, depths=(2, 6), pools=("mean",), num_outputs=CLASSES).eval()


def techniques_for(name: str, base: Graft) -> list:
    return {
        "top half": [LastK(blocks=3)],
        "head": [LastK(blocks=0)],
        "distillation": [LastK(blocks=1), Distillation(teacher=copy.deepcopy(base))],
        "SAM": [LastK(blocks=3), SAM()],
        "EWC": [LastK(blocks=3), EWC(weight=1.0, samples=16)],
        "DANN": [LastK(blocks=3), DANN(target=texts(seed=5))],
        "thaw": [StagedThaw(groups_per_stage="even", shares=(0.2, 0.3, 0.5))],
        "LoRA": [LoRA(rank=4, targets="layer.[345].*")],
    }[name]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["top half", "head", "distillation", "SAM", "EWC", "DANN", "thaw", "LoRA"])
def test_losses_over_three_epochs_are_those_without_a_store(base, name, precision):
    losses = []
    for extra in ([], [CachePrefix()]):
        model = copy.deepcopy(base)
        set_steady(model)
        update = toy.descent(AdamW(lr=1e-3), precision=precision)
        stage = Stage(name="s", model=model, source=texts(), objective=cross_entropy, update=update, steps=9)
        recipe = compile(Recipe(model=model, stages=(stage,)), [*techniques_for(name, base), *extra])
        losses.append([record["loss"] for record in fit(recipe, log_every=1).history])
    assert losses[1] == losses[0]
