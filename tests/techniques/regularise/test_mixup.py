"""MixUp: mixtures computed by hand, labels in their shares, draws of (seed, step) alone, and what cannot be mixed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from toy import blobs, mlp, recipe, stage

from regraft.core import Batch, Clock, compile, fit
from regraft.core.protocols import Source
from regraft.errors import Conflict
from regraft.losses.supervised import cross_entropy, squared_error
from regraft.techniques.regularise.mixup import MixUp, mixed, mixing
from regraft.techniques.speed.prefetch import Prefetch

CLOCK = Clock(0, 1)


def test_a_mixture_is_the_one_computed_by_hand():
    batch = {"id": torch.tensor([7, 8]), "x": torch.tensor([[1.0, 0.0], [0.0, 4.0]]), "y": torch.tensor([2, 0])}
    batch |= {"teacher_logits": torch.tensor([[1.0], [3.0]]), "target_x": torch.tensor([[5.0], [6.0]])}
    out = mixed(batch, 0.75, np.array([1, 0]))
    assert out["x"].tolist() == [[0.75, 1.0], [0.25, 3.0]]
    assert out["teacher_logits"].tolist() == [[1.5], [2.5]]
    assert (out["y"].tolist(), out["other_y"].tolist(), out["share"].tolist()) == ([2, 0], [0, 2], [0.75, 0.75])
    assert out["id"] is batch["id"]
    assert out["target_x"] is batch["target_x"]


def test_the_loss_is_the_cross_entropy_against_the_mixed_label():
    torch.manual_seed(0)
    batch = {"x": torch.randn(6, 8), "y": torch.tensor([0, 1, 2, 3, 0, 1])}
    out, model = mixed(batch, 0.3, np.array([3, 4, 5, 0, 1, 2])), mlp()
    labels = 0.3 * F.one_hot(out["y"], 4) + 0.7 * F.one_hot(out["other_y"], 4)
    wanted = F.cross_entropy(model(out["x"]), labels)  # PyTorch's own, on class probabilities
    torch.testing.assert_close(cross_entropy(model, out, CLOCK).value, wanted)


def test_rows_without_a_label_do_not_count():
    model = mlp()
    batch = {"x": torch.ones(2, 8), "y": torch.tensor([1, -1])}
    loss = cross_entropy(model, mixed(batch, 0.25, np.array([1, 0])), CLOCK)
    torch.testing.assert_close(loss.value, F.cross_entropy(model(torch.ones(1, 8)), torch.tensor([1])))
    assert float(loss.weight) == 1.0


def test_numbers_are_mixed_as_targets():
    batch = {"x": torch.zeros(2, 8), "y": torch.tensor([1.0, 5.0])}
    out = mixed(batch, 0.5, np.array([1, 0]))
    assert out["y"].tolist() == [3.0, 3.0]
    assert "share" not in out
    model = torch.nn.Linear(8, 1)
    torch.testing.assert_close(squared_error(model, out, CLOCK).value, (model.bias[0] - 3.0) ** 2)


def test_shares_follow_the_beta_distribution_and_depend_on_seed_and_step_alone():
    shares = [mixing(4, 0.4, seed=3, step=step)[0] for step in range(2000)]
    assert stats.kstest(shares, stats.beta(0.4, 0.4).cdf).pvalue > 0.01
    share, partners = mixing(64, 0.4, seed=3, step=17)
    again, same = mixing(64, 0.4, seed=3, step=17)
    assert share == again == shares[17]
    assert (partners == same).all()
    assert sorted(partners.tolist()) == list(range(64))
    assert mixing(64, 0.4, seed=4, step=17)[0] != share


def test_batches_from_a_later_step_are_the_same_with_and_without_a_thread():
    def batches(*techniques, start):
        made = compile(recipe(stage()), [*techniques]).stages[0]
        drawn = made.source.batches(made.model, start)
        return [next(drawn) for _ in range(3)]

    whole = batches(MixUp(), start=0)
    for late in (batches(MixUp(), start=2)[0], batches(MixUp(), Prefetch(), start=2)[0]):
        assert all(torch.equal(late[key], whole[2][key]) for key in whole[2])


class Words(Source):
    inputs = {"input_ids": "id"}  # noqa: RUF012 - read only

    def batches(self, model, start=0, /):
        yield Batch(
            {"id": torch.arange(2), "input_ids": torch.ones(2, 3, dtype=torch.long), "y": torch.zeros(2).long()}
        )


class Whole(Words):
    inputs = {"x": "id"}  # noqa: RUF012 - read only

    def batches(self, model, start=0, /):
        yield Batch({"id": torch.arange(2), "x": torch.ones(2, 3, dtype=torch.long), "y": torch.zeros(2).long()})


def test_tokens_are_refused_when_the_recipe_is_compiled_and_whole_numbers_at_the_first_batch():
    with pytest.raises(Conflict, match="reads the tokens of texts; drop MixUp"):
        compile(recipe(stage(source=Words())), [MixUp()])
    with pytest.raises(Conflict, match="whole numbers under x"):
        fit(compile(recipe(stage(source=Whole())), [MixUp()]))


def test_an_objective_that_cannot_weigh_two_labels_is_refused():
    def lost(model, batch, clock):
        return cross_entropy(model, batch, clock)

    with pytest.raises(Conflict, match="must be a supervised one, which can weigh two labels, got lost"):
        compile(recipe(stage(objective=lost)), [MixUp()])


def test_mixing_makes_a_model_less_sure_of_itself():
    def sureness(*techniques):
        made = compile(recipe(stage(model=mlp(seed=1), steps=150, data=blobs(n=64))), [*techniques])
        fit(made)
        rows = blobs(n=512, seed=9)
        with torch.no_grad():
            return float(made.model(rows["x"]).softmax(1).amax(1).mean())

    assert sureness(MixUp(alpha=1.0)) < sureness() - 0.03
