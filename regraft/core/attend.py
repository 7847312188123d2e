"""What a run does for its steps: it cuts batches where memory runs out, and says why a step must not be made."""

from __future__ import annotations

from weakref import proxy

from regraft.core.descent import descents
from regraft.core.finite import Trouble
from regraft.core.guard import explained
from regraft.core.micro_batch import Attendant, out_of_memory, why_whole
from regraft.core.run import Run
from regraft.core.values import Batch, Loss
from regraft.errors import RunError


def attend(run: Run) -> Run:
    """The run, which every update of its step asks and tells from here on when memory runs out.

    They do not hold on to it: an optimizer's state is as large as its weights, and goes with its run and not when Python next
    looks for cycles.
    """
    stage, seen = run.stage, proxy(run)
    attendant = Attendant(
        where=lambda: f"stage {stage.name!r}, step {seen.clock.step + 1:,}",
        whole=lambda: why_whole(stage),
        note=lambda sentence: seen.note(sentence, step=seen.clock.step + 1),
        remind=run.notes.append,
    )
    for descent in descents(run.step):
        descent.attendant = attendant
    return run


def conclude(run: Run) -> None:
    """Say how often gradients of the stage were clipped, and how many steps were skipped for their overflow."""
    for descent in descents(run.step):
        said = [descent.clipping.said()]
        if descent.scaling is not None and descent.scaling.skipped:
            skipped, scale = descent.scaling.skipped, descent.scaling.value
            said.append(
                f"{skipped} of {run.clock.step:,} steps were skipped because gradients overflowed in fp16; the loss scale "
                f"is {scale:,g} at the end"
            )
        for sentence in said:
            if sentence is not None:
                run.note(f"stage {run.stage.name!r}: {sentence}")


def make_step(run: Run, batch: Batch) -> Loss:
    """One step of the run on a batch; its loss.

    Raises:
        RunError: numbers are not finite, with the place they come from and before a parameter is changed; or the optimizer found
            no memory for its state.
    """
    try:
        return run.step(batch, run.clock)
    except Trouble as trouble:
        raise RunError(explained(run, trouble)) from None
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise RunError(
            f"stage {run.stage.name!r}: memory does not suffice for step {run.clock.step + 1:,} beside its gradients; "
            "train fewer weights (LoRA, LastK), or use an optimizer with less state (SGD)"
        ) from error
