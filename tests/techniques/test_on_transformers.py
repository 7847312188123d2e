"""The techniques on a transformer and texts of different length: masks, attention and padding instead of plain rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regraft.core import Clock, Recipe, Stage, compile, fit, trainable
from regraft.core.checkpoint import Checkpointer, load
from regraft.data.sources import Examples
from regraft.losses.supervised import cross_entropy
from regraft.models.fisher import fisher, fisher_by_loop, fisher_by_vmap
from regraft.optim.build import DescentBuilder
from regraft.optim.optimizers import AdamW
from regraft.techniques.alignment.grpo import GRPO
from regraft.techniques.continual.ewc import EWC
from regraft.techniques.distil.distillation import Distillation
from regraft.techniques.domain.dann import DANN
from regraft.techniques.meta.maml import MAML
from regraft.techniques.regularise.dropout import DropConnect, Dropout, DropPath, SpatialDropout
from regraft.techniques.regularise.sam import SAM
from regraft.techniques.regularise.weight_average import WeightAverage
from regraft.techniques.stability.weight_norm import SpectralNorm, WeightNorm
from regraft.testing import differing, model_state

LONGEST = 12


class Texts:
    """Token ids of random length; the class is decided by the first token."""

    inputs = ("input_ids", "attention_mask")

    def __init__(self, num=96, *, seed=0, longest=LONGEST):
        random = np.random.default_rng(seed)
        self.lengths = random.integers(4, longest + 1, num)
        self.tokens = random.integers(1, 40, (num, longest))
        self.labels = self.tokens[:, 0] % 4

    def __len__(self):
        return len(self.lengths)

    def collate(self, rows) -> dict[str, Tensor]:
        longest = self.lengths[rows].max()
        mask = np.arange(longest)[None] < self.lengths[rows, None]
        ids = np.where(mask, self.tokens[rows, :longest], 0)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}


class Classifier(nn.Module):
    """A small BERT, mean-pooled, with a linear head."""

    inputs = ("input_ids", "attention_mask")

    def __init__(self, seed=0, dropout=0.0):
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=LONGEST, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.backbone = BertModel(config, add_pooling_layer=False)
            self.head = nn.Linear(16, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        return self.head((hidden * mask).sum(1) / mask.sum(1))


def built(technique, **options) -> Recipe:
    texts, other = Texts(), Texts(seed=5, longest=LONGEST - 3)
    model = Classifier(dropout=0.1)
    source = Examples(texts, texts.labels, batch_size=8, seed=0)
    update = DescentBuilder(optimizer=AdamW(lr=5e-3), **options)
    stages = tuple(
        Stage(name=name, model=model, source=source, objective=cross_entropy, update=update, steps=3) for name in "ab"
    )
    target = Examples(other, None, batch_size=8, seed=1)
    recipe = Recipe(model=model, stages=stages, models={"teacher": Classifier(seed=3)}, sources={"target": target})
    return compile(recipe, [technique] if technique else [])


TECHNIQUES = {
    "DANN": DANN(target="target", width=8),
    "Distillation": Distillation(teacher="teacher"),
    "DropConnect": DropConnect(rate=0.2),
    "DropPath": DropPath(rate=0.3),
    "Dropout": Dropout(rate=0.3),
    "EWC": EWC(weight=10.0, samples=12),
    "GRPO": GRPO(group_size=4, kl_weight=0.1),
    "MAML": MAML(ways=3, shots=1, queries=2, tasks=2),
    "MAML of first order": MAML(ways=3, shots=1, queries=2, tasks=2, first_order=True),
    "SAM": SAM(),
    "SpatialDropout": SpatialDropout(rate=0.2),
    "SpectralNorm": SpectralNorm(modules="*.layer.*"),
    "WeightNorm": WeightNorm(modules="*.layer.*"),
    "WeightAverage": WeightAverage(),
}


@pytest.mark.parametrize("name", TECHNIQUES)
def test_it_trains_and_resumes_bit_for_bit(name, tmp_path):
    whole = built(TECHNIQUES[name])
    before = model_state(whole)
    report = fit(whole, hooks=[Checkpointer(tmp_path, every=1, keep=99)])
    assert all(math.isfinite(record["loss"]) for record in report.history)
    assert differing(before, model_state(whole))
    again = built(TECHNIQUES[name])
    state = load(sorted(tmp_path.iterdir())[-1])
    fit(again, hooks=[Checkpointer(tmp_path / "again", every=99)], resume=state)
    assert differing(model_state(whole), model_state(again)) == []


@pytest.mark.parametrize("name", TECHNIQUES)
def test_bf16_stays_finite(name):
    recipe = built(TECHNIQUES[name], precision="bf16")
    fit(recipe)
    assert all(bool(value.isfinite().all()) for value in model_state(recipe).values())


def test_the_joint_pass_over_source_and_target_gives_the_source_its_own_logits():
    """The shorter texts are filled up with padding that the mask hides."""
    recipe = built(TECHNIQUES["DANN"])
    stage = recipe.stages[0]
    stage.model.eval()
    batch = next(stage.source.batches(stage.model))
    assert batch["input_ids"].shape[1] != batch["target_input_ids"].shape[1]
    plain = cross_entropy(stage.model, batch, Clock(0, 1))
    joint = stage.objective(stage.model, batch, Clock(0, 1))
    domain = joint.terms["domain"]
    torch.testing.assert_close(joint.value - domain, plain.value, rtol=1e-5, atol=1e-6)


def test_a_transformer_whose_mask_code_looks_at_values_has_its_fisher_information_looped_for():
    recipe = built(None)
    stage = recipe.stages[0]
    stage.model.eval()
    batch = {key: value[:4] for key, value in next(stage.source.batches(stage.model)).items()}
    names = frozenset(trainable(stage.model))
    with pytest.raises(RuntimeError, match="vmap"):
        fisher_by_vmap(cross_entropy, stage.model, batch, Clock(0, 1), names)
    loop = fisher_by_loop(cross_entropy, stage.model, batch, Clock(0, 1), names)
    chosen = fisher(cross_entropy, stage.model, batch, Clock(0, 1), names)
    assert all(torch.equal(value, chosen[name]) for name, value in loop.items())


def test_plain_training_learns_these_texts():
    recipe = built(None)
    report = fit(Recipe(model=recipe.model, stages=recipe.stages * 20), log_every=1)
    assert np.mean([r["loss"] for r in report.history[-6:]]) < 0.8 * report.history[0]["loss"]
