"""Schedules that act on validation results: traces against torch, and what a resume and a stage that was split keep of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler as theirs

from regraft.config.parse import dump_one, parse_one
from regraft.config.recipe import parse_recipe
from regraft.core import Hook, fit
from regraft.core.checkpoint import Checkpointer, find_newest
from regraft.core.values import Clock
from regraft.errors import ConfigError
from regraft.optim.build import DescentBuilder
from regraft.optim.optimizers import SGD
from regraft.optim.plateau import ReduceLROnPlateau, RestartOnPlateau
from regraft.phases.build import assemble
from regraft.phases.judges import Watch, judge_for

LOSSES = [1.0, 0.9, 0.9, 0.95, 0.91, 0.92, 0.8, 0.81, 0.82, 0.83, 0.84, 0.85, 0.86, 0.87, 0.5]


def factors(schedule, losses):
    """The factor of the step after each result, one step a result."""
    running, out = schedule.begin(), []
    for step, loss in enumerate(losses):
        out.append(running(Clock(step, len(losses))))
        running.judged({"loss": loss, "score": -loss})
    return out


@pytest.mark.inventory("plateau", by="train.schedule: ReduceLROnPlateau")
@settings(max_examples=60, deadline=None)
@given(
    losses=st.lists(st.floats(0.01, 2.0), min_size=2, max_size=40),
    factor=st.sampled_from([0.1, 0.5]),
    patience=st.integers(0, 3),
    cooldown=st.integers(0, 3),
    floor=st.sampled_from([0.0, 0.05]),
    watch=st.sampled_from(["loss", "score"]),
)
def test_a_plateau_is_found_where_torch_finds_it(losses, factor, patience, cooldown, floor, watch):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    mode = {"loss": "min", "score": "max"}[watch]
    scheduler = theirs.ReduceLROnPlateau(
        optimizer, mode=mode, factor=factor, patience=patience, cooldown=cooldown, min_lr=floor, threshold=1e-3, eps=0
    )
    expected = []
    for loss in losses:
        expected.append(optimizer.param_groups[0]["lr"])
        scheduler.step(loss)
    ours = ReduceLROnPlateau(
        factor=factor, patience=patience, cooldown=cooldown, floor=floor, watch=watch, threshold=1e-3
    )
    running, got = ours.begin(), []
    for step, loss in enumerate(losses):
        got.append(running(Clock(step, len(losses))))
        running.judged({"loss": loss, "score": loss})
    assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.inventory("warm-restarts", by="train.schedule: RestartOnPlateau")
def test_a_restart_goes_back_to_the_full_rate_and_down_over_what_is_left():
    got = factors(RestartOnPlateau(schedule="Linear", patience=1), LOSSES)
    # results 1 and 2 of 0.9 and 0.95 bring nothing: the step after them is the first of a line over the 11 left
    assert got[:4] == pytest.approx([1 - k / 15 for k in range(4)])
    assert got[4:9] == pytest.approx([1 - k / 11 for k in range(5)][:2] + got[6:9])
    assert got[4] == 1.0
    restarts = [k for k in range(1, len(got)) if got[k] > got[k - 1]]
    assert restarts == [4, 6, 9, 11, 13]
    assert all(got[k] == 1.0 for k in restarts)


class Say(Hook):
    """Says a loss after every third step, as a validation would, and keeps the rates."""

    def __init__(self):
        self.rates = []

    def on_step(self, run, loss):
        self.rates.append(run.step.updates["all"].optimizer.param_groups[0]["lr"])
        if run.clock.step % 3 == 0:
            run.judged({"loss": LOSSES[run.clock.step // 3 % len(LOSSES)], "score": 0.0})


@pytest.mark.inventory("plateau", by="train.schedule: ReduceLROnPlateau")
@pytest.mark.parametrize("schedule", [ReduceLROnPlateau(patience=1, factor=0.5), RestartOnPlateau(patience=1)])
@pytest.mark.parametrize("killed", [4, 12, 15, 31])
def test_what_was_seen_survives_a_resume(schedule, killed, tmp_path):
    import toy

    def recipe():
        update = DescentBuilder(optimizer=SGD(lr=0.1), schedule=schedule)
        return toy.recipe(toy.stage(model=toy.mlp(), steps=45, update=update))

    class Kill(Hook):
        def on_step(self, run, loss):
            if run.clock.step == killed:
                raise KeyboardInterrupt

    whole, first, rest = Say(), Say(), Say()
    one = recipe()
    fit(one, hooks=(whole,))
    with pytest.raises(KeyboardInterrupt):
        fit(recipe(), hooks=(first, Checkpointer(tmp_path, every=1), Kill()))
    other = recipe()
    state, _ = find_newest(tmp_path)[0]
    fit(other, hooks=(rest, Checkpointer(tmp_path, every=100), Hook()), resume=state)
    assert [*first.rates[: 45 - len(rest.rates)], *rest.rates] == whole.rates
    assert min(whole.rates) < max(whole.rates)
    for ours, theirs_ in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(ours, theirs_)


RECIPE = """
data: {main: {path: wine}}
models: {main: {network: MLP}}
train: {batch_size: 32, optimizer: {SGD: {lr: 1.0e-9}}, schedule: {ReduceLROnPlateau: {patience: 1, factor: 0.5}}}
validate: {times: 6}
stages: [{name: a, steps: 12}]
"""


def test_the_rate_falls_in_a_run_whose_validation_does_not_improve():
    say = Say()
    say.on_step = lambda run, loss: say.rates.append(run.step.updates["all"].optimizer.param_groups[0]["lr"])  # type: ignore[method-assign]
    spec = parse_recipe(RECIPE)
    made = assemble(
        spec, hooks=lambda stage, entry: [Watch(judge_for(spec.techniques, entry, "valid"), spec.validate_), say]
    )
    fit(made.recipe)
    # a result after every second step; the first is the best, the second and third are without progress, and so on
    assert say.rates == pytest.approx([1e-9] * 6 + [5e-10] * 4 + [2.5e-10] * 2)


@pytest.mark.parametrize("name", ["ReduceLROnPlateau", "RestartOnPlateau"])
def test_it_survives_the_file_and_is_no_part_of_a_sequence(name):
    schedule = parse_one({name: {"patience": 5, "watch": "score"}}, "schedule")
    assert parse_one(dump_one(schedule), "schedule") == schedule
    with pytest.raises(ConfigError, match="can be no part of a Sequence"):
        parse_one({"Sequence": {"parts": [{"schedule": name}]}}, "schedule")
    with pytest.raises(ConfigError, match="acts on validation results itself"):
        parse_one({"RestartOnPlateau": {"schedule": name}}, "schedule")
