"""Checkpoints: whole or not there, verified, and the older one when the newest is damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from toy import mlp, recipe, sgd, stage, weights

from regraft.core import Hook, Source, fit
from regraft.core import checkpoint as checkpoints
from regraft.core.checkpoint import Checkpointer, load, load_newest, save
from regraft.errors import RunError

STATE = {
    "step": 3,
    "rate": 0.1,
    "name": "toy",
    "nothing": None,
    "weights": {"a.b": torch.arange(6.0).reshape(2, 3), "empty": torch.zeros(0)},
    "list": [1, {"x": torch.tensor(2, dtype=torch.int64)}, "y"],
}


def test_what_was_saved_is_loaded(tmp_path):
    save(tmp_path / "step-1", STATE)
    state = load(tmp_path / "step-1")
    assert state["weights"].keys() == STATE["weights"].keys()
    assert torch.equal(state["weights"]["a.b"], STATE["weights"]["a.b"])
    assert state["list"][1]["x"].dtype == torch.int64
    assert all(state[key] == STATE[key] for key in ("step", "rate", "name", "nothing"))


def test_tensors_that_share_memory_are_saved_both(tmp_path):
    tensor = torch.arange(4.0)
    save(tmp_path / "c", {"a": tensor, "b": tensor, "c": tensor[:2]})
    state = load(tmp_path / "c")
    assert torch.equal(state["a"], state["b"])
    assert torch.equal(state["c"], tensor[:2])


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_every_kind_of_damage_is_noticed_and_the_file_is_named(tmp_path, name, how):
    save(tmp_path / "step-1", STATE)
    file = tmp_path / "step-1" / name
    raw = bytearray(file.read_bytes())
    if how == "flip":
        raw[-1] ^= 1
        file.write_bytes(raw)
    elif how == "cut":
        file.write_bytes(raw[:-10])
    else:
        file.unlink()
    with pytest.raises(RunError) as error:
        load(tmp_path / "step-1")
    assert name in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"sha256": 3}'])
def test_a_manifest_that_is_not_one_is_an_unsound_checkpoint(tmp_path, text):
    save(tmp_path / "step-1", STATE)
    (tmp_path / "step-1" / "manifest.json").write_text(text)
    with pytest.raises(RunError, match="not a sound checkpoint"):
        load(tmp_path / "step-1")


def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path / f"step-{step:08d}", {"step": step, "w": torch.ones(2)})
    (tmp_path / "step-00000003" / "state.safetensors").write_bytes(b"garbage")
    found = load_newest(tmp_path)
    assert found is not None
    state, path, damaged = found
    assert (state["step"], path.name) == (2, "step-00000002")
    assert len(damaged) == 1
    assert "step-00000003" in damaged[0]


def test_without_a_sound_checkpoint_there_is_none(tmp_path):
    assert load_newest(tmp_path) is None


@pytest.mark.parametrize("during", ["_sync", "_write", "rename"])
def test_a_write_that_fails_leaves_the_earlier_checkpoint_and_nothing_half_written(tmp_path, monkeypatch, during):
    folder = tmp_path / "step-1"
    save(folder, {"step": 1, "w": torch.ones(2)})

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((Path, "rename", full) if during == "rename" else (checkpoints, during, full)))
    with pytest.raises(RunError, match=r"could not be written \(No space left on device\); .* GB are free there"):
        save(tmp_path / "step-2", {"step": 2, "w": torch.ones(2)})
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-1"]
    assert load(folder)["step"] == 1


def test_a_process_killed_while_writing_leaves_no_folder_under_the_final_name(tmp_path):
    """Everything but the rename has happened: what is there is not called a checkpoint."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        os.close(read)
        Path.rename = lambda *_: os._exit(9)  # type: ignore[method-assign]
        save(tmp_path / "step-00000001", STATE)
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    os.close(read)
    assert os.waitstatus_to_exitcode(status) == 9
    assert list(tmp_path.glob("step-*")) == []
    assert load_newest(tmp_path) is None
    save(tmp_path / "step-00000001", STATE)  # the leftovers are in nobody's way
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_the_newest_ones_are_kept(tmp_path):
    fit(recipe(stage(steps=7)), hooks=[Checkpointer(tmp_path, every=2, keep=2)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000004", "step-00000006"]


class Remembering(Hook):
    """Remembers the first loss it saw, across resumes."""

    def __init__(self):
        self.first = None
        self.starts = 0

    def on_start(self, run):
        self.starts += 1

    def on_step(self, run, loss):
        if self.first is None:
            self.first = loss.value.clone()

    def state_dict(self):
        return {"first": self.first}

    def load_state_dict(self, state):
        self.first = state["first"]


def test_a_hook_that_keeps_its_state_is_not_reset_by_the_on_start_after_a_resume(tmp_path):
    kept = Remembering()
    fit(recipe(stage(steps=6)), hooks=[kept, Checkpointer(tmp_path, every=3)])
    resumed = Remembering()
    state = load(tmp_path / "step-00000003")
    fit(recipe(stage(steps=6)), hooks=[resumed, Checkpointer(tmp_path / "b", every=100)], resume=state)
    assert resumed.starts == 1
    assert torch.equal(resumed.first, kept.first)


def two_stages():
    model = torch.nn.Sequential(*mlp(), torch.nn.Dropout(0.3))
    return recipe(stage(model, steps=5, name="one"), stage(model, steps=5, name="two", update=sgd(0.05, micro=2)))


def test_a_run_resumed_in_the_second_stage_does_not_run_the_first_again(tmp_path):
    whole = two_stages()
    fit(whole, seed=3, hooks=[Checkpointer(tmp_path, every=1, keep=99)])
    state = load(tmp_path / "step-00000008")
    again = two_stages()
    report = fit(again, seed=3, hooks=[Checkpointer(tmp_path / "b", every=100)], resume=state)
    assert report.steps == {"two": 5}
    assert torch.equal(weights(whole.model), weights(again.model))


def test_a_checkpoint_of_another_recipe_is_refused_with_what_differs(tmp_path):
    fit(recipe(stage(steps=6)), hooks=[Checkpointer(tmp_path, every=3)])
    state = load(tmp_path / "step-00000003")
    with pytest.raises(RunError) as error:
        fit(recipe(stage(steps=7, name="other")), seed=1, resume=state)
    assert str(error.value) == (
        "the checkpoint is of stage 'toy' with 6 steps and seed 0, but the recipe has 'other' with 7 steps and seed 1; "
        "resume with the recipe the run was started with"
    )


def test_no_state_of_a_random_generator_is_saved(tmp_path):
    """Numbers are functions of (seed, stage, step), so there is none to save, and none to go stale."""
    fit(two_stages(), hooks=[Checkpointer(tmp_path, every=1, keep=99)])
    assert "rng" not in json.loads((tmp_path / "step-00000003" / "state.json").read_text())


def test_a_source_says_what_its_batches_are():
    with pytest.raises(NotImplementedError, match="Source does not say"):
        Source().batches(mlp())
