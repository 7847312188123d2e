"""Techniques on real images (scikit-learn's handwritten digits, 8 x 8), each against a baseline trained the same way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from regraft.core import Recipe, Stage, compile, fit
from regraft.core.values import Batch
from regraft.data.episodes import Episodes
from regraft.data.sources import Examples
from regraft.losses.supervised import cross_entropy
from regraft.models.networks import GenerativePair
from regraft.optim.build import DescentBuilder
from regraft.optim.optimizers import Adam
from regraft.techniques.alignment.grpo import GRPO
from regraft.techniques.continual.ewc import EWC
from regraft.techniques.generative.gan import GAN
from regraft.techniques.meta.maml import MAML
from regraft.testing import Rows


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.from_numpy((data.data / 8 - 1).astype(np.float32))
    return x, torch.from_numpy(data.target.astype(np.int64)), np.random.default_rng(0).permutation(len(x))


def network(outputs=10):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))


def stage(model, x, y, *, steps, lr=3e-3, betas=(0.9, 0.999), name="digits", rows=None):
    source = Examples(Rows(x), y, batch_size=32, seed=0, rows=rows)
    update = DescentBuilder(optimizer=Adam(lr=lr, betas=betas))
    return Stage(name=name, model=model, source=source, objective=cross_entropy, update=update, steps=steps)


def accuracy(model, x, y):
    model.eval()
    with torch.no_grad():
        return float((model(x).argmax(-1) == y).float().mean())


def test_grpo_learns_digits_from_rewards_alone(digits):
    x, y, order = digits
    train, test = order[:1400], order[1400:]
    model = network()
    before = accuracy(model, x[test], y[test])
    chosen = stage(model, x, y, steps=400, rows=train)
    fit(compile(Recipe(model=model, stages=(chosen,)), [GRPO(group_size=8, epochs=1)]))
    after = accuracy(model, x[test], y[test])
    assert before < 0.3
    assert after > 0.9, after


@pytest.mark.slow
def test_gan_makes_digits_whose_pixels_have_the_datas_mean_and_spread(digits):
    x, y, _ = digits
    model = GenerativePair(latent=16, width=64).build((64,), 1)
    noise = torch.randn(512, 16, generator=torch.Generator().manual_seed(1))

    def distance():
        with torch.no_grad():
            fake = model.generator(noise)
        return float((fake.mean(0) - x.mean(0)).norm() + (fake.std(0) - x.std(0)).norm())

    before = distance()
    fit(compile(Recipe(model=model, stages=(stage(model, x, y, steps=1000, lr=1e-3, betas=(0.5, 0.999)),)), [GAN()]))
    assert distance() < 0.7 * before, (before, distance())


def role(batch: Batch, name: str, task: int) -> Batch:
    return {key.removeprefix(f"{name}_"): value[task] for key, value in batch.items() if key.startswith(name)}


@pytest.mark.slow
def test_maml_learns_new_digits_from_five_examples_better_than_a_classifier_of_the_old_ones(digits):
    x, y, _ = digits
    old = np.flatnonzero(y.numpy() < 6)
    maml = MAML(ways=3, shots=5, queries=10, tasks=4, inner_lr=0.1, inner_steps=2)
    meta, classifier = network(), network()
    fit(compile(Recipe(model=meta, stages=(stage(meta, x, y, steps=150, rows=old),)), [maml]))
    fit(Recipe(model=classifier, stages=(stage(classifier, x, y, steps=150, rows=old),)))
    new = torch.where(y >= 6, y, -1)
    batch = Episodes(Rows(x), new, ways=3, shots=5, queries=20, tasks=12, seed=9).batch_at(0)

    def mean_accuracy(model):
        scores = []
        for task in range(12):
            adapted = maml.adapt(model, role(batch, "support", task))
            query = role(batch, "query", task)
            scores.append(accuracy(adapted, query["x"], query["y"]))
        return np.mean(scores)

    meta_score, plain_score = mean_accuracy(meta), mean_accuracy(classifier)
    assert meta_score > 0.65
    assert meta_score > plain_score + 0.15, (meta_score, plain_score)


def test_ewc_forgets_less_of_the_digits_while_it_learns_them_with_their_pixels_shuffled(digits):
    """The benchmark of the paper: one permutation of the pixels after another."""
    x, y, _ = digits
    shuffled = x[:, torch.randperm(64, generator=torch.Generator().manual_seed(1))]

    def scores(techniques):
        model = network()
        stages = (stage(model, x, y, steps=200, name="plain"), stage(model, shuffled, y, steps=200, name="shuffled"))
        fit(compile(Recipe(model=model, stages=stages), techniques))
        return accuracy(model, x, y), accuracy(model, shuffled, y)

    (plain_old, plain_new), (old, new) = scores([]), scores([EWC(weight=100.0)])
    assert old > plain_old + 0.1, (plain_old, plain_new, old, new)
    assert new > plain_new - 0.1, (plain_old, plain_new, old, new)
