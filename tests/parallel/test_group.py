"""Processes that sum tensors: the sum, and what happens when one of them is killed, frozen, fails or never comes."""

from __future__ import annotations

import signal
import time

import pytest
import torch

from regraft.core.ranks import RankLost
from regraft.errors import RunError
from regraft.parallel.group import lead


def test_a_sum_over_three_processes(tmp_path):
    with lead(3, "toy_ranks:sums", {"times": 2}, log=tmp_path / "log") as member:
        for _ in range(2):
            numbers = torch.tensor([1.0, 10.0, 100.0])
            member.sum(numbers)
            assert numbers.tolist() == [4.0, 13.0, 103.0]


@pytest.mark.parametrize(
    ("number", "silent", "words"),
    [(signal.SIGKILL, 20.0, "was killed by SIGKILL"), (signal.SIGSTOP, 2.0, "gave no sign of life for 2 s")],
)
def test_a_process_that_ends_or_freezes_is_named_and_not_waited_for(tmp_path, number, silent, words):
    with lead(2, "toy_ranks:ends_within", {"signal": number}, log=tmp_path / "log", silent=silent) as member:
        member.sum(torch.zeros(1))
        began = time.monotonic()
        with pytest.raises(RankLost, match=f"process 2 of 2 {words}"):
            member.sum(torch.zeros(1))
        assert time.monotonic() - began < 30


def test_a_process_that_never_comes_is_named(tmp_path):
    with (
        pytest.raises(RankLost, match="process 2 of 2 was killed by SIGKILL"),
        lead(2, "toy_ranks:never_comes", {}, log=tmp_path / "log"),
    ):
        pytest.fail("the block must not begin")


def test_a_process_that_fails_ends_the_run_with_its_reason(tmp_path):
    with lead(2, "toy_ranks:fails", {}, log=tmp_path / "log") as member:
        member.sum(torch.zeros(1))
        with pytest.raises(RunError, match=r"process 2 of 2 failed \(ValueError: no such thing\)"):
            member.sum(torch.zeros(1))
