"""Every technique with `processes: 2`: both hold the same bits after every step, and they are the steps of one process."""

from __future__ import annotations

import pytest
import torch
from faults.lab import Forked
from techniques.cases import CASES
from torch._C._distributed_c10d import FileStore

from regraft.core import compile, fit
from regraft.parallel.group import follow
from regraft.parallel.together import Together
from regraft.testing import model_state, toy_recipe

OWN_NOISE = {"GAN"}  # techniques whose slices draw the numbers of the whole batch in one process, and others in two


def built(case, dropout: float = 0.0):
    recipe = toy_recipe(case.network(dropout), optimizer=case.gentle, shows=case.shows, objective=case.objective)
    return compile(recipe, [case.technique])


def trained(case, rank: int, folder, dropout: float):
    if rank == 0:
        FileStore(str(folder / "meeting"), 2).set("all here", "")
    recipe = built(case, dropout)
    fit(recipe, hooks=(Together(follow(rank, 2, folder), every=1),))
    return [t.double().flatten().tolist() for t in model_state(recipe).values()]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_two_processes_make_the_steps_of_one(tmp_path, case):
    processes = [Forked(lambda rank=rank: trained(case, rank, tmp_path, 0.0)) for rank in range(2)]
    ends = [process.wait(120) for process in processes]
    one, two = (end.result() for end in ends)
    assert one == two
    if case.noisy or case.name in OWN_NOISE:
        return
    alone = built(case)
    fit(alone)
    for (name, a), b in zip(model_state(alone).items(), one, strict=True):
        torch.testing.assert_close(
            a.double().flatten(),
            torch.tensor(b).double(),
            rtol=1e-4,
            atol=1e-5,
            msg=lambda text, name=name: f"{name}: {text}",
        )
