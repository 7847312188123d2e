"""What a run's next step depends on, as nested dicts of tensors and JSON values; and back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from regraft.core.protocols import State
from regraft.errors import RunError

if TYPE_CHECKING:
    from regraft.core.run import Run


def run_state(run: Run) -> State:
    """The state of a run between two steps.

    The whole model is saved once; of a stage's model that is another module (the suffix behind a stored prefix, an
    adversary), only the tensors that the whole model does not hold. What was logged is not part of it: the log is a file of
    its own, and is cut back to the step the run goes on from.
    """
    stage = run.stage
    whole = run.recipe.model.state_dict()
    return {
        "stage": run.index,
        "stage_name": stage.name,
        "step": run.clock.step,
        "total": run.clock.total,
        "seed": run.seed,
        "model": whole,
        "stage_model": _unshared(stage.model.state_dict(), whole),
        "objective": stage.objective.state_dict() if isinstance(stage.objective, nn.Module) else {},
        "source": stage.source.state_dict(),
        "updates": {name: update.state_dict() for name, update in run.step.updates.items()},
        "hooks": [hook.state_dict() for hook in run.hooks],
        "stopped": run.stopped,
    }


def load_run(run: Run, state: State) -> None:
    """Put a run that stands in the same stage where the saved one stood; what it logged of later steps is forgotten.

    Raises:
        RunError: the state belongs to another recipe.
    """
    stage = run.stage
    expected, got = (stage.name, run.clock.total, run.seed), (state["stage_name"], state["total"], state["seed"])
    if expected != got:
        raise RunError(
            f"the checkpoint is of stage {got[0]!r} with {got[1]:,} steps and seed {got[2]}, but the recipe has "
            f"{expected[0]!r} with {expected[1]:,} steps and seed {expected[2]}; resume with the recipe the run was started with"
        )
    run.recipe.model.load_state_dict(state["model"])
    if state["stage_model"]:
        stage.model.load_state_dict(state["stage_model"], strict=False)
    if isinstance(stage.objective, nn.Module):
        stage.objective.load_state_dict(state["objective"])
    stage.source.load_state_dict(state["source"])
    for name, update in run.step.updates.items():
        update.load_state_dict(state["updates"][name])
    for hook, saved in zip(run.hooks, state["hooks"], strict=True):
        hook.load_state_dict(saved)
    run.clock = replace(run.clock, step=state["step"])
    run.pending.clear()
    run.history = [
        record for record in run.history if record["stage"] != stage.name or int(record["step"]) <= state["step"]
    ]
    run.stopped = state["stopped"]
    if run.log is not None:
        run.log.rewind(run.index, run.clock.step)


def _unshared(tensors: dict[str, Any], whole: dict[str, Any]) -> dict[str, Tensor]:
    held = {value.data_ptr() for value in whole.values() if isinstance(value, Tensor)}
    return {
        name: value for name, value in tensors.items() if isinstance(value, Tensor) and value.data_ptr() not in held
    }
