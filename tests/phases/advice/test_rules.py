"""Advice: each rule speaks where its reason holds, and is silent where it does not."""

import pytest

from regraft.config.recipe import parse_recipe
from regraft.optim.convergence import law_of
from regraft.phases.advice.examples import sided, upright
from regraft.phases.advice.lint import advise
from regraft.phases.advice.situation import Situation, StageFacts

PARTS = """
data: {main: {path: data.csv}}
models: {main: {name: minilm}}
stages: [{name: adapt, steps: 100}]
train: {batch_size: 32, optimizer: {AdamW: {lr: 2e-5, weight_decay: 0.01}}, schedule: {Linear: {warmup: 0.06}}}
techniques: [Discriminative]
"""


def seen(*overrides, rows=5000, classes=("a", "b"), modality="text", share=1.0, norms=0):
    stage = StageFacts(name="adapt", pretrained_share=share, batch_norms=norms)
    return Situation(
        spec=parse_recipe(PARTS, overrides=overrides), rows=rows, classes=classes, modality=modality, stages=(stage,)
    )


def codes(situation):
    return [finding.code for finding in advise(situation)]


def test_a_sound_recipe_gets_no_advice():
    assert codes(seen()) == []


@pytest.mark.inventory("uniform-lr-mistake", "early-unfreeze-mistake", by="regraft lint, regraft train")
@pytest.mark.inventory("weight-decay-range", "batch-tens-hundreds", by="regraft lint, regraft train")
@pytest.mark.parametrize(
    ("code", "speaks", "silent"),
    [
        ("RATE1", ["techniques=[]"], ["techniques=[Discriminative]"]),
        ("RATE1", ["techniques=[SAM]"], {"share": 0.1}),
        ("RATE2", ["train.optimizer.AdamW.lr=0.003"], ["train.optimizer={SGD: {lr: 0.1, weight_decay: 1e-3}}"]),
        ("RATE3", ["train.schedule=Cosine"], ["train.schedule=OneCycle"]),
        ("RATE3", ["train.schedule=Cosine", "train.batch_size=256"], ["train.batch_size=256"]),
        ("RATE4", ["train.schedule={Constant: {warmup: 0.1}}"], ["train.schedule={Power: {exponent: 0.6, warmup: 0.1}}"]),
        ("RATE5", ["train.batch_size=512", "train.optimizer=SGD"], ["train.batch_size=512", "train.optimizer={SGD: {lr: 0.2}}"]),
        ("RATE5", ["train.batch_size=512", "train.optimizer=Adam"], ["train.batch_size=64", "train.optimizer=Adam"]),
        ("RATE5", ["train.batch_size=512", "train.optimizer={SOAP: {lr: 3e-4}}"], ["train.optimizer={SOAP: {lr: 3e-4}}"]),
        ("RATE6", ["train.schedule=ReduceLROnPlateau"], ["train.schedule=ReduceLROnPlateau", "validate.times=5"]),
        ("OPT1", ["train.batch_size=2048"], ["train.batch_size=2048", "train.optimizer.AdamW.betas=[0.9, 0.98]"]),
        ("OPT2", ["techniques=[GAN]"], ["techniques=[GAN]", "train.optimizer={Adam: {lr: 2e-4, betas: [0.5, 0.999]}}"]),
        ("DECAY1", ["train.optimizer.AdamW.weight_decay=0.1"], ["train.optimizer.AdamW.weight_decay=0"]),
        ("DECAY1", ["train.optimizer.AdamW.weight_decay=1e-6"], ["train.optimizer.AdamW.weight_decay=1e-4"]),
        ("BATCH1", ["train.batch_size=2"], ["train.batch_size=16"]),
        ("BATCH1", ["train.batch_size=48"], ["train.batch_size=512"]),
        ("BATCH1", ["train.batch_size=4096"], ["train.batch_size=64"]),
        ("FREEZE1", {"rows": 300}, {"rows": 300, "share": 0.3}),
    ],
)  # fmt: skip
def test_a_rule_speaks_where_its_reason_holds(code, speaks, silent):
    for given, expected in ((speaks, True), (silent, False)):
        options = given if isinstance(given, dict) else {}
        assert (code in codes(seen(*(() if options else given), **options))) is expected, given


def test_a_small_network_of_images_bears_a_higher_rate():
    from dataclasses import replace

    high = seen("train.optimizer.AdamW.lr=0.01", modality="image")
    assert "RATE2" in codes(high)
    (stage,) = high.stages
    assert "RATE2" not in codes(replace(high, stages=(replace(stage, pretrained=213_000),)))
    assert "RATE2" in codes(replace(high, modality="text", stages=(replace(stage, pretrained=213_000),)))


def test_batch_norm_minds_the_slice_and_not_the_batch():
    assert "BATCH2" not in codes(seen(norms=4))
    assert "BATCH2" in codes(seen("train.micro=4", norms=4))
    assert "BATCH2" not in codes(seen("train.micro=4"))


def test_a_fitted_head_may_be_thawed_at_once():
    assert "FREEZE1" not in codes(seen("probe={}", rows=300))


def test_mirrors_are_spoken_of_where_sides_matter():
    for classes, expected in (
        (("turn_left", "turn_right"), True),
        (tuple("0123456789"), True),
        (("cat", "dog"), False),
    ):
        situation = seen("train.flip=true", classes=classes, modality="image")
        assert ("DATA1" in codes(situation)) is expected
    assert "DATA1" not in codes(seen("train.flip=true", classes=("left", "right"), modality="text"))
    assert sided(["bed", "leftover", "bright"]) == []
    moved = seen(
        "techniques=[Discriminative, {ImageGeometry: {flip: 0.5}}]", classes=("left", "right"), modality="image"
    )
    assert [(f.code, f.where) for f in advise(moved)] == [("DATA1", "techniques.ImageGeometry.flip")]


@pytest.mark.parametrize("options", ["{rotate: 180}", "{flip_vertical: 0.5}"])
def test_turning_over_is_spoken_of_where_up_and_down_differ(options):
    technique = f"techniques=[Discriminative, {{ImageGeometry: {options}}}]"
    for classes, expected in ((tuple("0123456789"), True), (("thumb_up", "thumb_down"), True), (("cat", "dog"), False)):
        assert ("DATA2" in codes(seen(technique, classes=classes, modality="image"))) is expected
    gentle = seen(
        "techniques=[Discriminative, {ImageGeometry: {rotate: 15}}]", classes=tuple("0123456789"), modality="image"
    )
    assert "DATA2" not in codes(gentle)
    assert upright(["update", "9 lives", "M"]) == ["9 lives", "M"]


@pytest.mark.inventory("robbins-monro", by="regraft schedule, regraft lint")
@pytest.mark.parametrize(
    ("schedule", "law"),
    [
        ("Constant", (True, False)),
        ("StepDecay", (True, False)),
        ("WarmRestarts", (True, False)),
        ("{Power: {exponent: 0.3}}", (True, False)),
        ("{Power: {exponent: 0.5}}", (True, False)),
        ("{Power: {exponent: 0.6}}", (True, True)),
        ("{Power: {exponent: 1.0}}", (True, True)),
        ("{Power: {exponent: 1.5}}", (False, True)),
        ("Exponential", (False, True)),
        ("{Cyclic: {low: 0.0, shrink: 0.5}}", (False, True)),
        ("{Cyclic: {low: 0.1, shrink: 0.5}}", (True, False)),
        ("{ReduceLROnPlateau: {floor: 0.0}}", (False, True)),
        ("{Sequence: {parts: [{schedule: Constant, steps: 5}, {schedule: {Power: {exponent: 1.0}}}]}}", (True, True)),
    ],
)
def test_the_sums_of_rates_are_those_of_the_schedule_continued(schedule, law):
    found = law_of(seen(f"train.schedule={schedule}").schedule)
    assert (found.travels, found.settles, found.ends) == (*law, False)


@pytest.mark.inventory("robbins-monro", by="regraft schedule, regraft lint")
@pytest.mark.parametrize("name", ["Linear", "Cosine", "Polynomial", "OneCycle"])
def test_a_schedule_that_ends_is_said_to_end_and_is_not_objected_to(name):
    situation = seen(f"train.schedule={name}")
    law = law_of(situation.schedule)
    assert law.ends
    assert "stays at its last rate after its end" in law.sentence(name)
    assert "RATE4" not in codes(situation)


@pytest.mark.inventory("robbins-monro", by="regraft lint")
@pytest.mark.parametrize("exponent", [0.3, 0.5, 0.6, 1.0, 1.5])
def test_the_law_of_a_power_is_that_of_its_sums(exponent):
    """Sums over ten times as many steps: they grow by less and less where the sum is finite."""
    import numpy as np

    steps = np.arange(1, 10**6 + 1, dtype=float)
    for power, holds in ((1, "travels"), (2, "settles")):
        parts = np.add.reduceat(steps ** (-exponent * power), [0, 10**3, 10**4, 10**5])[1:]
        falling = bool(parts[2] < 0.99 * parts[1] < 0.99**2 * parts[0])
        law = law_of(seen(f"train.schedule={{Power: {{exponent: {exponent}}}}}").schedule)
        assert getattr(law, holds) is (falling if holds == "settles" else not falling)


@pytest.mark.inventory("power-decay", "robbins-monro", by="train.schedule: Power, regraft lint")
def test_the_practical_power_breaks_the_second_condition():
    found = [f for f in advise(seen("train.schedule={Power: {warmup: 0.1}}")) if f.code == "RATE4"]
    assert "the sum of the squared rates is infinite" in found[0].reason
    assert "the other condition holds" in found[0].reason


def test_every_finding_says_where_why_who_and_what_instead():
    loud = seen(
        "train.batch_size=3", "train.schedule=Constant", "train.flip=true", "techniques=[]",
        "train.optimizer={AdamW: {lr: 0.01, weight_decay: 0.5}}",
        rows=100, classes=("left", "right"), modality="image", norms=2,
    )  # fmt: skip
    found = advise(loud)
    assert {f.code for f in found} == {
        "RATE1",
        "RATE2",
        "RATE3",
        "RATE4",
        "DECAY1",
        "BATCH1",
        "BATCH2",
        "DATA1",
        "FREEZE1",
    }
    for finding in found:
        assert all((finding.where, finding.reason, finding.source, finding.fix))
    severities = [finding.severity for finding in found]
    assert severities == sorted(severities, key=lambda each: each != "warning")


def test_a_run_says_its_advice_and_keeps_it_in_the_report(tmp_path):
    from regraft.phases.train import train_job

    text = "data: {main: {path: wine}}\nmodels: {main: {network: MLP}}\ntrain: {batch_size: 8}\nstages: [{name: a, steps: 5}]"
    run = train_job(parse_recipe(text), tmp_path / "run")
    assert any("BATCH1" in reason for reason in run.read_json("metrics.json")["reasons"])
