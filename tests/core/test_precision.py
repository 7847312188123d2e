"""Half precision in training: what is computed, how the loss is scaled, which steps are skipped, and what is said about it."""

from __future__ import annotations

import itertools
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn
from toy import adam, descent, mlp, recipe, sgd, stage, weights

from regraft.config.recipe import parse_recipe
from regraft.core import Loss, compile, fit
from regraft.core.checkpoint import Checkpointer, load
from regraft.core.descent import descents
from regraft.core.loss_scale import LossScale
from regraft.core.precision import computing, supports, usable
from regraft.core.protocols import layers
from regraft.core.train import advance, start
from regraft.errors import RunError
from regraft.optim.optimizers import AdamW
from regraft.phases.training import builder
from regraft.techniques.control.stop_when import StopWhen
from regraft.techniques.regularise.gsam import GSAM
from regraft.techniques.regularise.sam import SAM
from regraft.techniques.transfer.adaptive_backprop import AdaptiveBackprop, AdaptiveUpdate

CPU = torch.device("cpu")
HEAD = "data: {main: {path: x.csv}}\nmodels: {main: {name: minilm}}\n"


def trained(precision="fp32", *, steps=60, **options):
    chosen = stage(mlp(width=64), steps=steps, update=adam(1e-2, precision=precision, **options))
    return fit(recipe(chosen)), weights(chosen.model)


def too_large(size):
    """Cross-entropy whose gradient is `size` times as large: above 1 it overflows fp16 at the first scales."""

    def objective(model, batch, clock):
        logits = model(batch["x"])
        return Loss(size * nn.functional.cross_entropy(logits, batch["y"]), float(len(logits)))

    return objective


@pytest.mark.inventory("amp-fp16", by="train.precision: fp16")
@pytest.mark.inventory("bf16", by="train.precision: bf16")
@pytest.mark.parametrize(("precision", "near"), [("fp16", 0.01), ("bf16", 0.03)])
def test_the_loss_in_half_precision_is_that_of_fp32_within_a_tolerance(precision, near):
    plain, half = (trained(p)[0].history for p in ("fp32", precision))
    assert half != plain, "it was computed in fp32"
    for one, other in zip(plain, half, strict=True):
        assert abs(one["loss"] - other["loss"]) < near * max(1.0, one["loss"])


def test_products_are_of_the_type_asked_for_and_weights_stay_in_fp32():
    seen = []
    model = mlp()
    model[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    run = advance(start(recipe(stage(model, steps=2, update=adam(precision="fp16")))))
    assert set(seen) == {torch.float16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    moments = descents(run.step)[0].optimizer.state[model[0].weight]
    assert moments["exp_avg"].dtype == torch.float32


@pytest.mark.inventory("bf16", by="train.precision: bf16")
def test_bf16_needs_no_scaler_and_fp16_has_one():
    updates = {p: adam(precision=p)({"w": nn.Parameter(torch.zeros(2))}) for p in ("fp32", "bf16", "fp16")}
    assert [name for name, update in updates.items() if update.scaling is not None] == ["fp16"]


@pytest.mark.inventory("grad-scaling", by="train.precision: fp16")
def test_scaling_saves_gradients_that_fp16_cannot_hold():
    """Gradients of 1e-7 and less round to 0 in fp16; with the scale they are those of fp32 to its precision."""
    made = {}
    for precision, scale in (("fp32", None), ("fp16", 1.0), ("fp16", 2.0**16)):
        run = start(recipe(stage(update=sgd(precision=precision), objective=too_large(1e-6))))
        update = descents(run.step)[0]
        if scale is not None:
            update.scaling.value = scale
        batch = next(iter(run.stage.source.batches(run.stage.model, 0)))
        update.gradients(lambda part, run=run: run.stage.objective(run.stage.model, part, run.clock), batch)
        made[precision, scale] = torch.cat([p.grad.flatten() for p in run.stage.model.parameters()])
    true, lost, saved = made.values()
    assert (lost == 0).float().mean() > 0.2
    torch.testing.assert_close(saved, true, rtol=0.02, atol=float(true.abs().max()) * 2e-3)
    assert (lost - true).norm() > 3 * (saved - true).norm()


@pytest.mark.inventory("grad-scaling", by="train.precision: fp16")
def test_a_step_whose_gradients_overflow_is_skipped_counted_told_and_the_scale_recovers():
    chosen = stage(steps=12, update=adam(precision="fp16"), objective=too_large(64.0))
    run = start(recipe(chosen))
    update = descents(run.step)[0]
    update.scaling.grow_every = 4
    before, scales, kept = weights(chosen.model), [update.scaling.value], []
    for _ in range(12):
        advance(run, 1)
        scales.append(update.scaling.value)
        kept.append(torch.equal(weights(chosen.model), before))
        before = weights(chosen.model)
    halved = [new < old for old, new in itertools.pairwise(scales)]
    skipped = update.scaling.skipped
    assert 1 <= skipped < 8
    assert kept == halved, "a skipped step changed a weight, or one that was made did not"
    assert sum(halved) == skipped
    assert max(scales[5:]) > min(scales), "the scale did not recover"
    assert "stage 'toy', step 1: gradients overflowed in fp16 at a loss scale of 65,536" in run.notes[0]
    assert f"{skipped} of 12 steps were skipped because gradients overflowed in fp16" in run.notes[-1]
    moments = update.optimizer.state[chosen.model[0].weight]
    assert int(moments["step"]) == 12 - skipped


@pytest.mark.inventory("grad-scaling", by="train.precision: fp16")
def test_the_scale_goes_the_way_of_torchs_own_scaler():
    ours, theirs = (
        LossScale(start=256.0, grow_every=3),
        torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3),
    )
    for bad in [True, False, False, True, False, False, False, False, False, False, True, False]:
        weight = nn.Parameter(torch.zeros(()))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        theirs.scale(weight * (float("inf") if bad else 1.0)).backward()
        theirs.step(optimizer)
        theirs.update()
        assert ours.overflowed() if bad else ours.good_step() is None
        assert ours.value == theirs.get_scale()
        assert (float(weight.detach()) == 0.0) == bad


@pytest.mark.inventory("grad-scaling", by="train.precision: fp16")
def test_it_survives_a_resume_bit_for_bit(tmp_path):
    def made():
        return recipe(stage(steps=14, update=adam(precision="fp16", max_norm=1.0), objective=too_large(64.0)))

    whole = made()
    fit(whole, hooks=[Checkpointer(tmp_path / "whole", every=1, keep=100)])
    for folder in sorted((tmp_path / "whole").iterdir()):
        again = made()
        hooks = [Checkpointer(tmp_path / "again", every=100)]
        run_notes = fit(again, hooks=hooks, resume=load(folder)).notes
        assert torch.equal(weights(again.model), weights(whole.model)), folder.name
        assert "the loss scale is" in run_notes[-1]
        assert "of 14 steps were skipped" in run_notes[-1]


@pytest.mark.inventory("nan-guard", by="regraft train")
def test_what_overflows_without_scaling_is_no_matter_of_the_scale():
    def nan_gradient(model, batch, clock):
        value = model(batch["x"]).mean()
        return Loss(value + (value - value.detach()).abs().sqrt() * 0, 32.0)

    with pytest.raises(RunError, match=r"the gradient of '4.bias' \(and of 5 others\) is not finite at step 17"):
        fit(recipe(stage(steps=40, update=adam(precision="fp16"), objective=nan_gradient)))
    with pytest.raises(RunError, match="the loss became inf at step 1 "):
        fit(recipe(stage(steps=4, update=adam(precision="fp16"), objective=too_large(float("inf")))))


def test_slices_of_a_batch_are_scaled_alike_and_wrappers_see_true_gradients():
    sliced = []
    for micro in (1, 4):
        sliced.append(stage(steps=8, update=sgd(0.1, precision="fp16", micro=micro)))
        fit(recipe(sliced[-1]))
    torch.testing.assert_close(weights(sliced[0].model), weights(sliced[1].model), rtol=0.02, atol=1e-3)
    ends = []
    for precision in ("fp32", "fp16"):
        chosen = stage(steps=15, update=sgd(0.1, precision=precision))
        fit(compile(recipe(chosen), [SAM(rho=0.1)]))
        ends.append(weights(chosen.model))
    assert (ends[1] - ends[0]).norm() < 0.02 * ends[0].norm()


def test_two_passes_a_step_and_rules_that_watch_it_bear_an_overflow():
    chosen = stage(steps=10, update=sgd(1e-3, precision="fp16"), objective=too_large(64.0))
    report = fit(compile(recipe(chosen), [SAM(rho=0.05), StopWhen(step_norm=1e-9)]))
    assert report.steps == {"toy": 10}
    assert any("steps were skipped" in note for note in report.notes)


@pytest.mark.inventory("tf32", by="train.precision: tf32")
def test_tf32_is_switched_on_inside_a_step_only_and_said_to_do_nothing_on_a_processor():
    assert not supports("tf32", CPU)
    report, ends = trained("tf32", steps=5)
    assert torch.equal(ends, trained("fp32", steps=5)[1])
    assert report.notes == ("precision tf32 has no effect: cpu has no tf32 arithmetic, so steps are fp32",)
    before = torch.get_float32_matmul_precision()
    with computing("tf32", CPU):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before == "highest"


@pytest.mark.inventory("tf32", by="train.precision: tf32")
@pytest.mark.inventory("bf16", by="train.precision: bf16")
@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32"])
def test_the_fallback_on_a_device_without_it_is_loud(precision, tmp_path):
    with patch("regraft.core.precision.supports", lambda precision, device: precision == "fp32"):
        assert usable(precision, CPU)[0] == "fp32"
        chosen = recipe(stage(steps=4, update=adam(precision=precision)))
        report = fit(chosen, hooks=[Checkpointer(tmp_path, every=2)])
        again, hooks = recipe(stage(steps=4, update=adam(precision=precision))), [Checkpointer(tmp_path, every=100)]
        resumed = fit(again, hooks=hooks, resume=load(next(tmp_path.iterdir())))
    for notes in (report.notes, resumed.notes):
        assert notes == (f"precision {precision} has no effect: cpu has no {precision} arithmetic, so steps are fp32",)


# ---- clipping


@pytest.mark.inventory("grad-clip", by="train.max_norm")
def test_the_global_norm_after_clipping_is_at_most_the_limit_and_the_rate_is_logged():
    norms = []

    class Watching(torch.optim.SGD):
        def step(self, closure=None):
            grads = [p.grad for group in self.param_groups for p in group["params"]]
            norms.append(float(torch.cat([g.flatten() for g in grads]).norm()))
            return super().step(closure)

    class Spec(AdamW):
        def over(self, groups):
            return Watching(groups, lr=0.1)

    limit = 0.9
    report = fit(recipe(stage(steps=40, update=descent(Spec(), max_norm=limit))))
    assert max(norms) <= limit * (1 + 1e-6)
    clipped = sum(norm > limit * (1 - 1e-5) for norm in norms)
    assert 0 < clipped < 40
    share = f"{clipped / 40:.0%}"
    assert report.notes == (f"stage 'toy': gradients were clipped in {clipped} of 40 steps ({share}; max_norm 0.9)",)
    fit(recipe(stage(steps=5, update=adam(max_norm=1e6))))


@pytest.mark.inventory("grad-clip", by="train.max_value")
def test_entries_are_cut_off_at_max_value_as_torch_does():
    run = start(recipe(stage(update=sgd(0.1, max_value=0.01))))
    model, update = run.stage.model, descents(run.step)[0]
    batch = next(iter(run.stage.source.batches(model, 0)))
    update.gradients(lambda part: run.stage.objective(model, part, run.clock), batch)
    expected = [p.grad.clone() for p in model.parameters()]
    assert max(float(g.abs().max()) for g in expected) > 0.01
    for grad, parameter in zip(expected, model.parameters(), strict=True):
        parameter.grad = grad.clone()
    update.apply(run.clock)
    for grad, parameter in zip(expected, model.parameters(), strict=True):
        assert torch.equal(parameter.grad, grad.clamp(-0.01, 0.01))
    assert update.clipping.said() == "gradients were clipped in 1 of 1 steps (100%; max_value 0.01)"


def test_clipping_makes_nothing_finite():
    def infinite_gradient(model, batch, clock):
        value = model(batch["x"]).mean()
        return Loss(value + (value - value.detach()).abs().sqrt(), 32.0)

    for options in ({"max_value": 0.1}, {"max_norm": 1.0}, {"max_value": 0.1, "max_norm": 1.0}):
        with pytest.raises(RunError, match="is not finite at step 1 "):
            fit(recipe(stage(steps=4, update=sgd(0.1, **options), objective=infinite_gradient)))


def test_a_recipe_says_both_and_what_it_says_reaches_the_update():
    spec = parse_recipe(HEAD + "train: {precision: fp16, max_value: 0.5, max_norm: 2.0}")
    made = builder(spec.train)({"w": nn.Parameter(torch.zeros(3))})
    assert (made.clipping.max_value, made.clipping.max_norm, made.precision) == (0.5, 2.0, "fp16")


@pytest.mark.parametrize("technique", [SAM(rho=0.05), GSAM(rho=0.05)], ids=["SAM", "GSAM"])
def test_running_statistics_see_no_weights_that_an_overflowed_gradient_has_climbed_to(technique):
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    chosen = stage(model, steps=12, update=adam(precision="fp16"), objective=too_large(64.0))
    run = fit(compile(recipe(chosen), [technique]))
    assert "gradients overflowed in fp16" in run.notes[0]
    assert all(buffer.isfinite().all() for buffer in model.buffers())


def test_adaptive_backprop_weighs_no_gradient_that_overflowed():
    chosen = stage(steps=20, update=adam(precision="fp16"), objective=too_large(64.0))
    run = start(compile(recipe(chosen), [AdaptiveBackprop(rho=0.5, weigh=0.9)]))
    update = next(each for each in layers(run.step.updates["all"]) if isinstance(each, AdaptiveUpdate))
    update.weigh = 8  # all of them are seen
    advance(run, 7)
    assert "gradients overflowed in fp16" in run.notes[0]
    assert np.isfinite(update.gains).all()
    assert update.gains.any()
