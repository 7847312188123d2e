"""Advice: each rule speaks where its reason holds, and is silent where it does not."""

import pytest

from regraft.config.recipe import parse_recipe
from regraft.phases.advice.batches import sided
from regraft.phases.advice.lint import RULES, advise
from regraft.phases.advice.rates import sums
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


@pytest.mark.parametrize(
    ("code", "speaks", "silent"),
    [
        ("RATE1", ["techniques=[]"], ["techniques=[Discriminative]"]),
        ("RATE1", ["techniques=[SAM]"], {"share": 0.1}),
        ("RATE2", ["train.optimizer.AdamW.lr=0.003"], ["train.optimizer={SGD: {lr: 0.1, weight_decay: 1e-3}}"]),
        ("RATE3", ["train.schedule=Cosine"], ["train.schedule=OneCycle"]),
        ("RATE3", ["train.schedule=Cosine", "train.batch_size=256"], ["train.batch_size=256"]),
        ("RATE4", ["train.schedule={Constant: {warmup: 0.1}}"], ["train.schedule={Power: {exponent: 0.6, warmup: 0.1}}"]),
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


@pytest.mark.parametrize(
    ("schedule", "law"),
    [
        ("Constant", (True, False)),
        ("{Power: {exponent: 0.3}}", (True, False)),
        ("{Power: {exponent: 1.0}}", (True, True)),
        ("{Power: {exponent: 1.5}}", (False, True)),
        ("Exponential", (False, True)),
        ("{Cyclic: {low: 0.0, shrink: 0.5}}", (False, True)),
        ("Cosine", None),
    ],
)
def test_the_sums_of_rates_are_those_of_the_schedule_continued(schedule, law):
    made = seen(f"train.schedule={schedule}").schedule
    assert sums(made) == law


def test_every_finding_says_where_why_who_and_what_instead():
    loud = seen(
        "train.batch_size=3", "train.schedule=Constant", "train.flip=true", "techniques=[]",
        "train.optimizer={AdamW: {lr: 0.01, weight_decay: 0.5}}",
        rows=100, classes=("left", "right"), modality="image", norms=2,
    )  # fmt: skip
    found = advise(loud)
    assert len(found) == len(RULES)
    for finding in found:
        assert all((finding.where, finding.reason, finding.source, finding.fix))
    severities = [finding.severity for finding in found]
    assert severities == sorted(severities, key=lambda each: each != "warning")


def test_a_run_says_its_advice_and_keeps_it_in_the_report(tmp_path):
    from regraft.phases.train import train_job

    text = "data: {main: {path: wine}}\nmodels: {main: {network: MLP}}\ntrain: {batch_size: 8}\nstages: [{name: a, steps: 5}]"
    run = train_job(parse_recipe(text), tmp_path / "run")
    assert any("BATCH1" in reason for reason in run.read_json("metrics.json")["reasons"])
