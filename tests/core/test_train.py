"""The loop, the default update and what a run writes."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from toy import Tensors, adam, blobs, mlp, recipe, sgd, stage, weights

from regraft.core import Clock, Hook, Loss, compile, fit
from regraft.core.modes import eval_mode, train_mode
from regraft.core.train import advance, start
from regraft.errors import ConfigError, RunError


class Noted(Hook):
    def __init__(self, notes, name="hook"):
        self.notes, self.name = notes, name

    def on_start(self, run):
        self.notes.append((self.name, "start", run.stage.name, run.clock.step))

    def on_step(self, run, loss):
        self.notes.append((self.name, "step", run.stage.name, run.clock.step))

    def on_end(self, run):
        self.notes.append((self.name, "end", run.stage.name, run.clock.step))


def test_it_matches_a_hand_written_loop_up_to_rounding():
    ours = stage(steps=20, update=sgd(0.1))
    fit(recipe(ours))
    theirs = mlp()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, fused=True)
    for _, batch in zip(range(20), Tensors(blobs()).batches(theirs), strict=False):
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(batch["x"]), batch["y"]).backward()
        optimizer.step()
    torch.testing.assert_close(weights(ours.model), weights(theirs), rtol=0, atol=1e-6)


def plain_cross_entropy(model, batch, clock):
    logits = model(batch["x"])
    return Loss(nn.functional.cross_entropy(logits, batch["y"]), float(len(logits)))


def test_with_the_same_loss_formula_not_one_bit_differs_from_a_hand_written_loop():
    ours = stage(nn.Sequential(*mlp(), nn.Dropout(0.0)), steps=20, update=adam(0.01), objective=plain_cross_entropy)
    fit(recipe(ours))
    theirs = mlp()
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.01, fused=True)
    for _, batch in zip(range(20), Tensors(blobs()).batches(theirs), strict=False):
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(batch["x"]), batch["y"]).backward()
        optimizer.step()
    assert torch.equal(weights(ours.model), weights(theirs))


def masked(model, batch, clock):
    """Token-like: only some rows count, a different number in each slice."""
    known = batch["y"] != 0
    value = nn.functional.cross_entropy(model(batch["x"])[known], batch["y"][known])
    return Loss(value, known.sum(), {"known": known.float().mean()})


@pytest.mark.parametrize("micro", [2, 3, 4])
def test_accumulation_equals_the_full_batch_when_slices_weigh_differently(micro):
    one = stage(steps=10, objective=masked, update=sgd(0.1))
    many = stage(steps=10, objective=masked, update=sgd(0.1, micro=micro))
    first, second = fit(recipe(one)), fit(recipe(many))
    torch.testing.assert_close(weights(one.model), weights(many.model), rtol=1e-5, atol=1e-6)
    assert first.last()["loss"] == pytest.approx(second.last()["loss"], rel=1e-5)


def test_the_mean_of_slice_means_would_not_pass_the_accumulation_test():
    def unweighted(model, batch, clock):
        loss = masked(model, batch, clock)
        return Loss(loss.value, 1.0, loss.terms)

    one, many = stage(steps=10, objective=masked), stage(steps=10, objective=unweighted, update=adam(micro=4))
    fit(recipe(one))
    fit(recipe(many))
    assert (weights(one.model) - weights(many.model)).abs().max() > 1e-4


def test_stages_run_in_order_and_hooks_of_the_stage_before_those_of_the_run():
    notes = []
    model = mlp()
    stages = [stage(model, steps=2, name=name, hooks=(Noted(notes, "own"),)) for name in ("one", "two")]
    report = fit(recipe(*stages), hooks=[Noted(notes, "run")])
    for name in ("one", "two"):
        assert [n[:2] + n[3:] for n in notes if n[2] == name] == [
            ("own", "start", 0), ("run", "start", 0), ("own", "step", 1), ("run", "step", 1),
            ("own", "step", 2), ("run", "step", 2), ("own", "end", 2), ("run", "end", 2),
        ]  # fmt: skip
    assert [n[2] for n in notes] == ["one"] * 8 + ["two"] * 8
    assert report.steps == {"one": 2, "two": 2}


def test_a_hook_may_stop_the_stage_and_the_next_one_still_runs():
    class Enough(Hook):
        def on_step(self, run, loss):
            if run.stage.name == "one" and run.clock.step == 3:
                run.stop("no progress")

    model = mlp()
    report = fit(recipe(stage(model, steps=9, name="one"), stage(model, steps=4, name="two")), hooks=[Enough()])
    assert report.steps == {"one": 3, "two": 4}
    assert report.stopped == {"one": "no progress"}


def test_a_step_reads_one_number_from_the_device_and_losses_are_read_once_per_log_interval():
    reads = []
    originals = {
        name: getattr(Tensor, name) for name in ("item", "tolist", "__float__", "__bool__", "__int__", "numpy")
    }

    def counted(name):
        def read(self, *args, **kwargs):
            reads.append(name)
            return originals[name](self, *args, **kwargs)

        return read

    plain = recipe(stage(steps=40, update=adam(max_norm=1.0)))
    fit(recipe(stage(steps=1)))  # whatever torch sets up once
    with patch.multiple(Tensor, **{name: counted(name) for name in originals}):
        fit(plain, log_every=10)
    checks = (["__float__"] * 10 + ["tolist"]) * 4 + ["__float__"]  # of each step's gradients, and of the last weights
    assert reads == checks, "a read of the device beside the checks and the log"


def test_the_log_holds_the_mean_loss_its_terms_and_weight_of_every_step():
    report = fit(recipe(stage(steps=7)), log_every=3)
    assert [record["step"] for record in report.history] == list(range(1, 8))
    assert report.last().keys() == {"stage", "step", "loss", "weight", "accuracy"}
    assert report.last()["weight"] == 32


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_with_the_step_and_a_way_out(value):
    def broken(model, batch, clock):
        return Loss(model(batch["x"]).sum() * 0.0 + (value if clock.step == 4 else 0.0))

    with pytest.raises(RunError) as error:
        fit(recipe(stage(steps=10, objective=broken)))
    assert str(error.value) == (
        f"stage 'toy': the loss became {value} at step 5 (the outputs of all layers are finite); lower the learning rate, clip "
        "gradients (max_norm), or use precision fp32, or let the technique Guard skip such steps"
    )


def test_the_callers_random_state_is_left_as_it_was():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    fit(recipe(stage(nn.Sequential(*mlp(), nn.Dropout(0.5)), steps=3)), seed=9)
    assert torch.equal(before, torch.get_rng_state())


def test_the_seed_decides_dropout_and_nothing_else_does():
    def final(seed, disturb):
        torch.manual_seed(disturb)
        chosen = stage(nn.Sequential(*mlp(), nn.Dropout(0.5)), steps=6)
        fit(recipe(chosen), seed=seed)
        return weights(chosen.model)

    assert torch.equal(final(1, 0), final(1, 99))
    assert not torch.equal(final(1, 0), final(2, 0))


def test_stopping_after_some_steps_and_going_on_is_the_same_as_not_stopping():
    whole, parts = stage(steps=12), stage(steps=12)
    advance(start(recipe(whole)))
    run = start(recipe(parts))
    advance(advance(run, 5))
    assert torch.equal(weights(whole.model), weights(parts.model))


def test_on_start_also_runs_when_a_run_goes_on():
    notes = []
    run = start(recipe(stage(steps=4)), hooks=[Noted(notes)])
    advance(advance(run, 2))
    assert [n[3] for n in notes if n[1] == "start"] == [0, 2]
    assert [n[3] for n in notes if n[1] == "end"] == [4]


# ---- momentum over the stage boundary


def momenta(run):
    update = run.step.updates["all"]
    state = update.optimizer.state
    return {name: state[p]["exp_avg"].clone() for name, p in update.named.items() if p in state}


def test_momentum_is_carried_over_a_stage_boundary_by_parameter_name():
    model = mlp()
    two = compile(recipe(stage(model, steps=5, name="one"), stage(model, steps=5, name="two")), [])
    first = advance(start(two, 0))
    kept = momenta(first)
    second = start(two, 1, previous=first)
    carried = momenta(second)
    assert carried.keys() == kept.keys()
    assert all(torch.equal(kept[name], carried[name]) for name in kept)
    assert not momenta(start(two, 1))  # what a stage that builds its update afresh starts with


def test_a_parameter_that_thaws_starts_without_momentum_and_the_others_keep_theirs():
    model = mlp()
    top = frozenset({"4.weight", "4.bias"})
    every = frozenset(dict(model.named_parameters()))
    two = recipe(stage(model, steps=5, name="a", trains=top), stage(model, steps=5, name="b", trains=every))
    carried = momenta(start(two, 1, previous=advance(start(two, 0))))
    assert carried.keys() == {"model.4.weight", "model.4.bias"}


def test_two_stages_of_five_steps_end_where_one_of_ten_ends():
    split, whole = mlp(), mlp()
    source = Tensors(blobs())

    class Later(Tensors):
        def batches(self, model, start=0):
            return super().batches(model, start + 5)

    fit(recipe(stage(split, steps=5, name="a", source=source), stage(split, steps=5, name="b", source=Later(blobs()))))
    fit(recipe(stage(whole, steps=10)))
    assert torch.equal(weights(split), weights(whole))


# ---- frozen means frozen


class Everything(nn.Module):
    """A linear block, batch normalisation and dropout below, a head above."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.below = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5))
            self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.below(x))


def test_what_a_stage_does_not_train_keeps_every_bit_under_weight_decay_batch_norm_and_dropout():
    model = Everything()
    before = {name: value.clone() for name, value in model.below.state_dict().items()}
    outputs = []
    handle = model.below.register_forward_hook(lambda module, args, output: outputs.append((args[0], output)))
    fit(recipe(stage(model, steps=8, update=adam(0.05), trains=frozenset({"head.weight", "head.bias"}))))
    handle.remove()
    assert all(torch.equal(before[name], value) for name, value in model.below.state_dict().items())
    model.below.eval()
    for x, output in outputs:  # dropout and batch statistics were off
        assert torch.equal(model.below(x), output)


def test_the_unfrozen_control_does_move_and_does_drop():
    model = Everything()
    before = {name: value.clone() for name, value in model.below.state_dict().items()}
    fit(recipe(stage(model, steps=2)))
    assert all(not torch.equal(before[name], value) for name, value in model.below.state_dict().items())


def test_thawing_brings_a_module_back_to_training_mode():
    model = Everything()
    both = frozenset(dict(model.named_parameters()))
    modes = []

    class Look(Hook):
        def on_step(self, run, loss):
            modes.append((run.stage.name, model.below[3].training, model.head.training))

    head = frozenset({"head.weight", "head.bias"})
    fit(
        recipe(stage(model, steps=1, name="a", trains=head), stage(model, steps=1, name="b", trains=both)),
        hooks=[Look()],
    )
    assert modes == [("a", False, True), ("b", True, True)]


def test_evaluating_in_between_does_not_wake_what_is_frozen():
    model = Everything()
    stage(model, trains=frozenset({"head.weight", "head.bias"})).prepare()
    train_mode(model)
    with eval_mode(model):
        assert not model.head.training
    assert model.head.training
    assert not model.below[3].training


def test_a_stage_without_a_trainable_parameter_is_refused_in_a_sentence():
    with pytest.raises(ConfigError, match="got no trainable parameter; a technique froze all of them"):
        fit(recipe(stage(steps=1, trains=frozenset())))


def test_the_clock_says_how_far_the_stage_is():
    fractions = []

    def watched(model, batch, clock):
        fractions.append(clock.fraction)
        return plain_cross_entropy(model, batch, clock)

    fit(recipe(stage(steps=4, objective=watched)))
    assert fractions == [0.0, 0.25, 0.5, 0.75]
    assert Clock(0, 0).fraction == 0
