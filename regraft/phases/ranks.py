"""`processes: N` of a recipe: a training whose steps N processes make together.

The process that was started leads: it alone writes the run directory, evaluates the test rows and reports. The others make the
same objects from the recipe in the run directory, and the same steps from the same checkpoint. One that is lost costs the steps
since the newest checkpoint: the training goes on from there with new processes, to the bits it would have had.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from regraft.config.recipe import RecipeSpec, read_recipe
from regraft.core import Hook, fit
from regraft.core.snapshot import load
from regraft.errors import ConfigError
from regraft.parallel.group import follow, lead
from regraft.parallel.together import Together
from regraft.phases.rundir import RECIPE, RunDirectory

LOG = "processes.log"
TARGET = "regraft.phases.ranks:make_the_same_steps"
LIVES = 3  # how often a training starts again from its newest checkpoint before a lost process ends it


@contextmanager
def made_together(run: RunDirectory, spec: RecipeSpec, checkpoint: Path | None) -> Generator[tuple[Hook, ...]]:
    """The hooks by which a training in this block is made together with other processes; none where the recipe asks for one.

    Args:
        run: holds the recipe.
        spec: the recipe.
        checkpoint: where all of them go on; None is the start.

    Raises:
        RankLost: one of them has ended.
    """
    if spec.processes == 1:
        yield ()
        return
    work = {"run": str(run.path), "checkpoint": None if checkpoint is None else str(checkpoint)}
    before = torch.get_num_threads()
    threads = max(1, min(before, (os.cpu_count() or 1) // spec.processes))
    torch.set_num_threads(threads)
    log = run.path / LOG
    try:
        with lead(spec.processes, TARGET, work, log=log, threads=threads) as member:
            yield (Together(member),)
    finally:
        torch.set_num_threads(before)
        if log.is_file() and not log.stat().st_size:
            log.unlink()  # they had nothing to say


def make_the_same_steps(work: dict[str, Any]) -> dict[str, Any]:
    """What the other processes do, given `run`, `checkpoint`, `rank`, `count` and `folder`; one that fails tells the leader."""
    from regraft.phases.train import Made, hooks_of  # which imports this file

    made = Made(read_recipe(Path(work["run"]) / RECIPE), None)
    state = None if work["checkpoint"] is None else load(Path(work["checkpoint"]))
    member = follow(work["rank"], work["count"], Path(work["folder"]))
    try:
        fit(made.assembled.recipe, seed=made.spec.seed, hooks=hooks_of(made, (Together(member),)), resume=state)
    except BaseException:
        dist.destroy_process_group()
        raise
    return {}  # connected until the leader lets it go, which may still be reading what it sent


def require_one_process(spec: RecipeSpec, instead: str) -> None:
    """Raise a ConfigError where a recipe asks for several processes from a job that has one."""
    if spec.processes != 1:
        raise ConfigError(
            f"processes: {spec.processes} is for `regraft train`, whose steps they make together; {instead}"
        )
