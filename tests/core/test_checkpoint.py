"""Checkpoints: whole or not there, verified, and the older one when the newest is damaged."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from toy import adam, mlp, recipe, sgd, stage, weights

from regraft.core import Hook, Source, fit
from regraft.core import checkpoint as checkpoints
from regraft.core.checkpoint import Best, Checkpointer, load, load_newest, save
from regraft.core.files import clean
from regraft.core.sizing import expected_bytes
from regraft.core.state import load_run
from regraft.core.stopping import Interrupted, Stop, listening
from regraft.core.train import advance, start
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


@pytest.mark.parametrize("during", ["open", "write", "fsync", "rename"])
@pytest.mark.parametrize("again", [False, True])
def test_a_write_that_fails_leaves_the_earlier_checkpoint_and_nothing_half_written(
    tmp_path, monkeypatch, during, again
):
    folder = tmp_path / "step-1"
    save(folder, {"step": 1, "w": torch.ones(2)})

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, during, full)
    with pytest.raises(RunError, match=r"could not be written \(No space left on device\); .* GB are free there"):
        save(folder if again else tmp_path / "step-2", {"step": 2, "w": torch.ones(2)})
    monkeypatch.undo()
    clean(tmp_path)  # a folder that cannot be opened cannot be removed either
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]
    assert load(folder)["step"] == 1


def test_a_checkpoint_that_is_replaced_is_there_until_the_new_one_is(tmp_path, monkeypatch):
    """Killed between the two renames: the folder is put in order, and holds the old one."""
    folder = tmp_path / "step-00000001"
    save(folder, {"step": 1})
    rename, calls = os.rename, []

    def killed(*names):
        calls.append(names)
        if len(calls) > 1:
            raise KeyboardInterrupt
        rename(*names)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        save(folder, {"step": 2})
    monkeypatch.undo()
    assert not folder.exists()
    clean(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert load(folder)["step"] == 1


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_newest_ones_are_kept(tmp_path):
    fit(recipe(stage(steps=7)), hooks=[Checkpointer(tmp_path, every=2, keep=2)])
    assert names(tmp_path) == ["step-00000004", "step-00000006"]


def test_the_best_ones_are_kept_as_well_and_saved_at_the_step_they_were_measured(tmp_path):
    scores = {2: 0.5, 3: 0.9, 5: 0.7, 7: 0.9, 8: 0.1}
    best = Best(keep=2, score=lambda run: scores.get(run.clock.step))
    whole = recipe(stage(steps=12))
    fit(whole, hooks=[Checkpointer(tmp_path, every=5, keep=1, best=best)])
    assert names(tmp_path) == ["step-00000003", "step-00000007", "step-00000010"]
    again = recipe(stage(steps=12))
    state = load(tmp_path / "step-00000003")
    fit(again, hooks=[Checkpointer(tmp_path, every=5, keep=1, best=best)], resume=state)
    assert names(tmp_path) == ["step-00000003", "step-00000007", "step-00000010"]
    assert torch.equal(weights(whole.model), weights(again.model))


def test_checkpoints_of_later_steps_than_the_run_has_made_do_not_push_out_those_it_writes(tmp_path):
    """Left behind by a run that was gone on with from before them, because they were damaged."""
    for step in (7, 8, 9):
        save(tmp_path / f"step-{step:08d}", {})
        (tmp_path / f"step-{step:08d}" / "state.json").write_text("damaged")
    fit(recipe(stage(steps=6)), hooks=[Checkpointer(tmp_path, every=2, keep=1)])
    assert names(tmp_path) == ["step-00000004"]
    assert load_newest(tmp_path) is not None


def test_the_newest_is_that_of_the_latest_step_whatever_the_clock_says(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path / f"step-{step:08d}", {"step": step})
        os.utime(tmp_path / f"step-{step:08d}", (1e9 - step, 1e9 - step))
    found = load_newest(tmp_path)
    assert found is not None
    assert found[0]["step"] == 3


class Slow:
    """A write that takes until it is let go."""

    def __init__(self, monkeypatch, error: OSError | None = None):
        self.gate, self.done, self.error, self.write = threading.Event(), 0, error, checkpoints.write
        monkeypatch.setattr(checkpoints, "write", self)

    def __call__(self, *args, **options):
        self.gate.wait(10)
        if self.error is not None:
            raise RunError("the disk is full")
        self.write(*args, **options)
        self.done += 1


class At(Hook):
    """Calls a function at a step."""

    def __init__(self, step, call):
        self.step, self.call = step, call

    def on_step(self, run, loss):
        if run.clock.step == self.step:
            self.call(run)


def test_steps_go_on_while_a_checkpoint_is_written_and_it_holds_the_step_it_was_made_at(tmp_path, monkeypatch):
    slow, saved = Slow(monkeypatch), []

    def at_two(run):
        saved.append(weights(run.recipe.model).clone())

    def at_four(run):
        assert slow.done == 0  # two steps were made meanwhile
        slow.gate.set()

    made = recipe(stage(steps=5))
    fit(made, hooks=[At(2, at_two), At(4, at_four), Checkpointer(tmp_path, every=2, keep=9)])
    assert slow.done == 2
    state = load(tmp_path / "step-00000002")
    assert torch.equal(torch.cat([value.flatten() for value in state["model"].values()]), saved[0])


def test_a_write_that_failed_in_the_background_ends_the_run(tmp_path, monkeypatch):
    slow, steps = Slow(monkeypatch, OSError()), []
    slow.gate.set()
    for every, last in ((2, 6), (5, 5)):  # at a later step; at the latest at the end of the stage
        with pytest.raises(RunError, match="the disk is full"):
            fit(recipe(stage(steps=6)), hooks=[At(6, steps.append), Checkpointer(tmp_path, every=every)])
        assert len(steps) <= last


def test_who_reads_the_newest_waits_for_the_one_that_is_being_written(tmp_path, monkeypatch):
    slow, found = Slow(monkeypatch), []

    def read(run):
        threading.Timer(0.1, slow.gate.set).start()
        found.append(load_newest(tmp_path))

    fit(recipe(stage(steps=5)), hooks=[At(4, read), Checkpointer(tmp_path, every=3)])
    assert found[0] is not None
    assert found[0][0]["step"] == 3


def test_the_thread_that_writes_lets_the_steps_go_first(tmp_path, monkeypatch):
    priority, seen = os.getpriority(os.PRIO_PROCESS, 0), []

    def write(*args, **options):
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    monkeypatch.setattr(checkpoints, "write", write)
    fit(recipe(stage(steps=3)), hooks=[Checkpointer(tmp_path, every=2)])
    assert seen == [min(19, priority + 10)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == priority


def test_going_back_to_a_checkpoint_forgets_what_was_logged_since(tmp_path):
    """As a rollback after a bad step does, in the middle of a run."""
    whole = recipe(stage(steps=8))
    history = fit(whole, log_every=3).history
    made = recipe(stage(steps=8))
    run = start(made, hooks=[Checkpointer(tmp_path, every=3)], log_every=3)
    advance(run, 5)
    state, path, _ = load_newest(tmp_path)  # type: ignore[misc]
    load_run(run, state)
    assert (path.name, run.clock.step, [record["step"] for record in run.history]) == ("step-00000003", 3, [1, 2, 3])
    advance(run)
    assert tuple(run.history) == history
    assert torch.equal(weights(made.model), weights(whole.model))


def test_a_state_does_not_grow_with_the_steps(tmp_path):
    sizes = []
    for steps in (10, 400):
        fit(recipe(stage(steps=steps)), hooks=[Checkpointer(tmp_path / str(steps), every=steps - 1)])
        file = next((tmp_path / str(steps)).glob("step-*")) / "state.json"
        sizes.append(file.stat().st_size)
    assert abs(sizes[1] - sizes[0]) <= 10  # digits of a number


@pytest.mark.parametrize("update", [sgd(0.1), sgd(0.1, max_norm=1.0), adam()])
def test_the_size_is_known_before_the_first_step_within_five_percent(tmp_path, update):
    made = stage(mlp(width=128), steps=4, update=update)
    run = start(recipe(made))
    expected = expected_bytes(run)
    advance(run)
    save(tmp_path / "c", run.state_dict())
    real = sum(file.stat().st_size for file in (tmp_path / "c").iterdir())
    assert expected == pytest.approx(real, rel=0.05)


def test_too_little_room_is_said_with_figures_before_a_step_is_made(tmp_path, monkeypatch):
    steps, usage = [], SimpleNamespace(free=30_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    hooks = [At(1, steps.append), Checkpointer(tmp_path, every=2, keep=2)]
    with pytest.raises(RunError) as error:
        fit(recipe(stage(mlp(width=64), steps=6, update=adam())), hooks=hooks)
    assert re.search(
        r": 3 checkpoints of \d+\.\d\d kB need 1\d\d\.\d\d kB, but 30\.00 kB are free there; ", str(error.value)
    )
    assert "checkpoint.keep_last" in str(error.value)
    assert steps == []


def test_being_asked_to_stop_saves_after_the_step_and_ends_there(tmp_path):
    whole, made = recipe(stage(steps=9)), recipe(stage(steps=9))
    fit(whole)
    stop, steps = Stop(), []
    ask = At(4, lambda run: setattr(stop, "requested", signal.SIGTERM))
    with pytest.raises(Interrupted) as stopped:
        fit(made, hooks=[ask, At(5, steps.append), Checkpointer(tmp_path, every=100, stop=stop)])
    assert stopped.value.exit_code == 143
    assert steps == []
    assert names(tmp_path) == ["step-00000004"]
    again = recipe(stage(steps=9))
    fit(
        again,
        hooks=[ask, At(5, steps.append), Checkpointer(tmp_path, every=100)],
        resume=load(tmp_path / names(tmp_path)[0]),
    )
    assert torch.equal(weights(again.model), weights(whole.model))


def test_the_signals_do_what_they_did_before_once_the_run_is_over():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with listening() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # the second one ends at once
        with stop.held():
            stop.check()
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            stop.check()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_handler_that_somebody_has_set_is_left_alone():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with listening() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested is None
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_no_signal_is_listened_to():
    seen = []

    def work():
        with listening():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


@pytest.mark.parametrize("part", ["space", "digit", "seal", "name"])
def test_a_manifest_with_a_changed_byte_is_noticed(tmp_path, part):
    save(tmp_path / "step-1", STATE)
    file = tmp_path / "step-1" / "manifest.json"
    raw = file.read_text()
    changed = {"space": raw + " ", "digit": raw.replace("/2", "/3"), "seal": raw[:-5] + "0000}", "name": raw}[part]
    if part == "name":  # the sound checkpoint of another step
        save(tmp_path / "step-2", STATE)
        changed = (tmp_path / "step-2" / "manifest.json").read_text()
    file.write_text(changed)
    with pytest.raises(RunError, match="not a sound checkpoint"):
        load(tmp_path / "step-1")


def test_what_is_written_is_a_safetensors_file_of_every_type(tmp_path):
    types = [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int8,
        torch.uint8,
        torch.bool,
    ]
    state = {str(kind): torch.arange(7).remainder(2).to(kind) for kind in types}
    state |= {"strided": torch.arange(6.0).reshape(2, 3).t(), "scalar": torch.tensor(3.0), "none": torch.zeros(0, 4)}
    save(tmp_path / "c", state)
    found = load_file(tmp_path / "c" / "state.safetensors")
    assert all(
        torch.equal(found[f"/{name}"], value) and found[f"/{name}"].dtype == value.dtype
        for name, value in state.items()
    )
    with pytest.raises(RunError, match=r"the state /x is of type torch\.complex64"):
        save(tmp_path / "d", {"x": torch.zeros(1, dtype=torch.complex64)})


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


@pytest.mark.parametrize("hostile", ["nested", "endless", "huge"])
def test_a_hostile_manifest_is_an_error_at_once(tmp_path, hostile):
    save(tmp_path / "step-1", {"x": torch.zeros(3)})
    manifest = tmp_path / "step-1" / "manifest.json"
    if hostile == "endless":
        manifest.unlink()
        manifest.symlink_to("/dev/zero")
    else:
        manifest.write_bytes(b"[" * 100_000 if hostile == "nested" else b"1" * 50_000_000)
    with pytest.raises(RunError, match="not a sound checkpoint"):
        load(tmp_path / "step-1")


def test_an_endless_file_behind_a_name_is_not_hashed(tmp_path):
    save(tmp_path / "step-1", {"x": torch.zeros(3)})
    tensors = tmp_path / "step-1" / "state.safetensors"
    tensors.unlink()
    tensors.symlink_to("/dev/zero")
    with pytest.raises(RunError, match="no regular file"):
        load(tmp_path / "step-1")
