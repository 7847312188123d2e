"""Kills, resumes and flipped bits with `regraft train` and `regraft resume`.

python benchmarks/arms/reliability_regraft.py kills|resumes|flips [--count 30]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reliability_lab import BATCH, EPOCH, ROWS, SIDE, WIDTH, Job, Watch, end, main


class Regraft:
    """The commands' own functions, on the digits that regraft brings."""

    name = "regraft"

    def train(self, folder: Path, job: Job, watch: Watch) -> Mapping[str, Any]:
        """Resume where there is a run, train where there is none."""
        from safetensors.torch import load_file

        from regraft.core import train as loop
        from regraft.core.checkpoint import Checkpointer
        from regraft.phases import train
        from regraft.phases.progress import Silent

        class Told(Silent):
            steps = 0

            def say(self, sentence: str, /) -> None:
                if sentence.startswith("continuing from step-"):
                    watch.begun.set(int(sentence.removeprefix("continuing from step-")))
                watch.told.set(max(watch.told.value, "passed over" in sentence or "damaged" in sentence))

        original = loop.seed_default

        def seeded(seed: int, stage: int, step: int) -> None:  # called as a step is about to be made
            watch.made.set(step)
            if step == job.dies_before:
                _settle()
                end()
            original(seed, stage, step)

        loop.seed_default = seeded
        Checkpointer._write = watch.around(Checkpointer._write)  # type: ignore[method-assign]
        train.write_report = lambda run: run  # the page is no part of what is compared
        if train.is_training_run(folder):
            train.resume_training(folder, reporter=Told())
        else:
            train.train_job(recipe(job), folder, reporter=Told())
        return load_file(folder / "phases" / "final.safetensors")

    def newest(self, folder: Path) -> Path:
        """The folder of the last step."""
        return max((folder / "checkpoints").glob("step-*"))


def _settle() -> None:
    """Let a checkpoint that is being written be finished: this test is of the checkpoint before the stop."""
    import threading

    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()


def recipe(job: Job) -> Any:
    """The recipe of a job; labelled rows of the digits, as many as the peers have."""
    from regraft.config.recipe import recipe_from_tree

    assert job.steps <= 2 * EPOCH
    return recipe_from_tree(
        {
            "data": {"main": {"path": "digits", "limit": ROWS, "limit_valid": 50, "limit_test": 50}},
            "models": {"main": {"network": {"MLP": {"width": WIDTH, "depth": 1, "dropout": 0.1}}, "image_size": SIDE}},
            "train": {"batch_size": BATCH, "optimizer": {"AdamW": {"lr": 1e-3}}, "augment": job.augment},
            "stages": [{"name": "train", "steps": job.steps}],
            "techniques": [{"Prefetch": {"batches": 2}}] if job.workers else [],
            "checkpoint": {"every_steps": job.every},
            "validate": {"times": 1},
        }
    )


if __name__ == "__main__":
    from regraft.phases.build import assemble
    from regraft.phases.train import Made  # noqa: F401 - everything is imported before the first fork

    assemble(recipe(Job(augment=True)))
    main(Regraft())
