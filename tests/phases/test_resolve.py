"""What a recipe leaves open about its rate: how it is settled, that the recipe of the run says so, and that it stays."""

import pytest

from regraft.config.recipe import dump_recipe, parse_recipe, read_recipe
from regraft.phases.resolve import resolved
from regraft.phases.train import train_job

PARTS = """
data: {main: {path: wine}}
models: {main: MODEL}
stages: [{name: a, steps: 3}]
"""
PRETRAINED, FRESH = "{name: minilm}", "{network: MLP}"


def settled(*overrides, model=FRESH):
    return resolved(parse_recipe(PARTS.replace("MODEL", model), overrides=overrides))


def lr(spec):
    return spec.train.optimizer.lr


@pytest.mark.inventory("linear-scaling", by="train.scale_from: {batch_size: 32}")
@pytest.mark.parametrize(("rule", "factor"), [("linear", 8.0), ("sqrt", 8.0**0.5)])
@pytest.mark.parametrize("optimizer", ["{SGD: {lr: 0.1}}", "{AdamW: {lr: 0.0003}}"])
def test_a_batch_eight_times_as_large_scales_the_rate_by_the_rule(rule, factor, optimizer):
    given = ("train.batch_size=256", f"train.optimizer={optimizer}")
    spec = settled(*given, f"train.scale_from={{batch_size: 32, rule: {rule}}}")
    assert lr(spec) == pytest.approx(factor * lr(settled(*given)), rel=1e-11)
    assert spec.train.scale_from is None
    assert f"the batch of 256 is 8 times the 32 it was given for ({rule} scaling" in spec.reasons[-1]
    assert resolved(parse_recipe(dump_recipe(spec))) == spec


def test_a_smaller_batch_lowers_the_rate():
    assert (
        lr(settled("train.batch_size=8", "train.optimizer={SGD: {lr: 0.1}}", "train.scale_from.batch_size=32")) == 0.025
    )


@pytest.mark.inventory("batch-beta2", by="train.scale_from: {batch_size: 256}")
def test_beta2_falls_at_a_very_large_batch_and_the_recipe_says_why():
    given = ("train.batch_size=4096", "train.scale_from={batch_size: 256, rule: sqrt}")
    spec = settled(*given)
    assert spec.train.optimizer.betas == (0.9, pytest.approx(1 - 16 * 0.001))
    assert "4,096 examples a step are 16 times as many" in spec.reasons[-1]
    assert settled("train.batch_size=65536", given[1]).train.optimizer.betas == (0.9, 0.95)
    assert settled("train.batch_size=512", given[1]).train.optimizer.betas == (0.9, 0.999)
    said = settled(*given, "train.optimizer={AdamW: {betas: [0.9, 0.999]}}")
    assert said.train.optimizer.betas == (0.9, 0.999)
    assert len(said.reasons) == 1


@pytest.mark.inventory("lower-lr-ft", by="regraft train, with models.main.name")
def test_fine_tuning_starts_at_a_tenth_of_the_rate_from_scratch():
    scratch, tuned = settled(model=FRESH), settled(model=PRETRAINED)
    assert lr(tuned) <= lr(scratch) / 10
    assert "train.optimizer.lr is 0.0001: pretrained weights are fine-tuned at a tenth of the rate" in tuned.reasons[0]
    assert scratch.reasons == ()
    assert lr(settled("techniques=[StagedThaw]", model=PRETRAINED)) == 1e-4
    assert lr(settled("techniques=[{LoRA: {rank: 4}}]", model=PRETRAINED)) == 1e-3  # what is added starts from nothing


def test_a_rate_that_was_given_stays_and_survives_the_file():
    spec = settled("train.optimizer={AdamW: {lr: 0.001}}", model=PRETRAINED)
    assert (lr(spec), spec.reasons) == (1e-3, ())
    assert lr(resolved(parse_recipe(dump_recipe(spec)))) == 1e-3


@pytest.mark.inventory("linear-scaling", by="train.scale_from: {batch_size: 32}")
def test_the_recipe_of_a_run_holds_what_was_trained_with(tmp_path):
    text = PARTS.replace("MODEL", FRESH)
    given = ("train.batch_size=64", "train.optimizer={SGD: {lr: 0.1}}", "train.scale_from.batch_size=32")
    run = train_job(parse_recipe(text, overrides=given), tmp_path / "run")
    kept = read_recipe(run.path / "recipe.yaml")
    assert (lr(kept), kept.train.scale_from) == (0.2, None)
    assert any("linear scaling" in reason for reason in kept.reasons)
    assert any("linear scaling" in reason for reason in run.read_json("metrics.json")["reasons"])
