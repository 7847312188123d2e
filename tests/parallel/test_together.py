"""Trainings made by several processes: the bits all of them hold, and those of one process that cuts its batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from faults.lab import Forked
from toy import Tensors, adam, blobs, mlp, recipe, sgd, stage, weights

from regraft.core import Hook, fit, ranks
from regraft.core.ranks import own_numbers, share_of, whole_gradient
from regraft.core.values import Loss
from regraft.parallel.group import follow
from regraft.parallel.together import Together, fingerprint


def together(folder: Path, count: int, made, **options):
    """What `made(rank)` gives as a recipe, trained by `count` forked processes: the weights and losses of each."""

    def work(rank: int):
        if rank == 0:
            from torch._C._distributed_c10d import FileStore

            FileStore(str(folder / "meeting"), count).set("all here", "")
        member = follow(rank, count, folder)
        recipe = made(rank)
        report = fit(recipe, hooks=(Together(member, every=2),), log_every=1, **options)
        return [weights(recipe.model).tolist(), [r["loss"] for r in report.history], int(fingerprint([torch.rand(3)]))]

    processes = [Forked(lambda rank=rank: work(rank)) for rank in range(count)]
    return [process.wait(120) for process in processes]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("update", [sgd(0.1), adam(), adam(max_norm=0.5), adam(micro=2)])
def test_the_steps_are_those_of_one_process(tmp_path, count, update):
    def made(rank: int):
        return recipe(stage(steps=12, update=update, source=Tensors(blobs(100), batch_size=25)))

    alone = made(0)
    report = fit(alone, log_every=1)
    ends = [end.result() for end in together(tmp_path, count, made)]
    assert all(end[0] == ends[0][0] for end in ends)
    torch.testing.assert_close(torch.tensor(ends[0][0]), weights(alone.model), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        torch.tensor(ends[0][1]), torch.tensor([r["loss"] for r in report.history]), rtol=1e-5, atol=1e-6
    )


def test_dropout_draws_other_numbers_in_each_process_and_the_generators_agree_after_it(tmp_path):
    def made(rank: int):
        model = torch.nn.Sequential(mlp(), torch.nn.Dropout(0.5))
        return recipe(stage(model, steps=6))

    (first, _, drawn), (second, _, also) = (end.result() for end in together(tmp_path, 2, made))
    assert first == second
    assert drawn == also  # after the training both draw alike

    class Two:
        def __init__(self, rank):
            self.rank, self.count = rank, 2

    seen, left = [], []
    for rank in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            with own_numbers(Two(rank), torch.device("cpu")):
                seen.append(torch.rand(4))
            left.append(torch.rand(4))
    assert not torch.equal(*seen)
    assert torch.equal(*left)


class Adds:
    """Stands for two processes of which the other one had no gradient for the last parameter, and the same loss."""

    rank, count = 0, 2

    def __init__(self, others):
        self.others = iter(others)

    def sum(self, tensor):
        tensor += next(self.others)


def test_a_parameter_has_a_gradient_where_any_process_has_one():
    params = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    params[0].grad = torch.tensor([1.0, 2.0])
    own = [Loss(torch.tensor(3.0), 2.0, {"accuracy": torch.tensor(0.5)})]
    other = Adds([torch.tensor([6.0, 6.0, 3.0, 1.0, 1.0, 0.0]).double(), torch.tensor([10.0, 20.0, 5.0, 6.0])])
    loss = whole_gradient(other, params, own)
    assert (float(loss.value), loss.weight, float(loss.terms["accuracy"])) == (1.5, 8.0, 0.5)
    assert [None if p.grad is None else p.grad.tolist() for p in params] == [[11.0, 22.0], [5.0, 6.0], None]


def test_where_there_are_more_processes_than_examples_the_last_ones_count_for_nothing():
    class Of:
        def __init__(self, rank):
            self.rank, self.count = rank, 4

    batch = {"x": torch.arange(3)}
    shares = [share_of(batch, Of(rank)) for rank in range(4)]
    assert [(share["x"].tolist(), counts) for share, counts in shares] == [
        ([0], 1.0),
        ([1], 1.0),
        ([2], 1.0),
        ([0], 0.0),
    ]


def test_a_batch_that_must_not_be_cut_is_refused(tmp_path):
    def made(rank: int):
        return recipe(stage(torch.nn.Sequential(torch.nn.BatchNorm1d(8), mlp()), steps=4))

    ends = together(tmp_path, 2, made)
    assert all(
        "stage 'toy': `processes: 2` cuts each batch in 2, but the BatchNorm1d '0' takes its statistics over the whole batch"
        in end.error
        for end in ends
    )


def test_processes_that_drift_apart_are_found_out(tmp_path):
    def made(rank: int):
        class Drifts(Hook):
            def on_step(self, run, loss):
                if run.clock.step == 3 and rank == 1:
                    next(run.stage.model.parameters()).data.flatten()[0] += 1e-7

        return recipe(stage(steps=8, hooks=(Drifts(),)))

    ends = together(tmp_path, 2, made)
    assert all("the 2 processes hold different weights after step 4" in end.error for end in ends)


def test_gradients_are_summed_in_messages_of_one_type_and_bounded_size(monkeypatch):
    monkeypatch.setattr(ranks, "BUCKET", 7)
    grads = [torch.zeros(n) for n in (3, 4, 5)] + [torch.zeros(1, dtype=torch.float64), torch.zeros(9).double()]
    assert [[len(grad) for grad in bucket] for bucket in ranks._buckets(grads)] == [[3, 4], [5], [1], [9]]
