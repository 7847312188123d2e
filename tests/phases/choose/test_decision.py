"""Decisions: what is recommended for a size of data, a distance of domains and a constraint; and that a plan says it."""

import pytest

from regraft.config.data import DataSpec
from regraft.config.recipe import ModelSpec
from regraft.phases.choose.decision import decisions
from regraft.phases.choose.rules import Facts, order
from regraft.phases.path import job_recipe, plan_job


def facts(*, rows, best_depth, gap=0.0):
    return Facts(modality="image", rows=rows, num_blocks=12, best_depth=best_depth, gap=gap)


def taken(constraint=None, **measured):
    found = decisions(facts(**measured), constraint)
    assert all(decision.pros and decision.risks for decision in found)
    return found


@pytest.mark.inventory("decision-small-far", by="regraft plan")
def test_little_data_of_another_domain_calls_for_adapters_and_strong_augmentation():
    (decision,) = taken(rows=300, best_depth=0.5, gap=0.08)
    assert decision.name == "small-far"
    assert decision.take.startswith("`Adapter` or `LoRA`, with strong augmentation")
    assert order(facts(rows=300, best_depth=0.5))[0][0] == "adapter"


@pytest.mark.inventory("decision-near-big", by="regraft plan")
def test_enough_data_near_by_calls_for_full_fine_tuning_at_rates_by_depth():
    (decision,) = taken(rows=9000, best_depth=1.0)
    assert decision.name == "near-big"
    assert decision.take.startswith("full fine-tuning with `Discriminative` rates")
    assert order(facts(rows=9000, best_depth=1.0))[0][0] == "full"


@pytest.mark.inventory("decision-edge", by="regraft plan --set constraint=edge")
def test_small_hardware_calls_for_a_student_and_eight_bits():
    decision = taken("edge", rows=9000, best_depth=1.0)[-1]
    assert decision.name == "edge"
    assert "`Distillation` into a small student" in decision.take
    assert "INT8 after training, or QAT" in decision.take


@pytest.mark.inventory("decision-dynamic", by="regraft plan --set constraint=dynamic")
def test_a_changing_domain_calls_for_continual_learning_with_replay_or_a_penalty():
    decision = taken("dynamic", rows=9000, best_depth=1.0)[-1]
    assert decision.name == "dynamic"
    assert "continual learning" in decision.take
    assert "replay of earlier rows or a penalty on forgetting (`EWC`)" in decision.take


@pytest.mark.inventory("task-similarity", by="regraft plan")
@pytest.mark.parametrize(
    ("rows", "depth", "said"),
    [
        (300, 1.0, "freeze most"),
        (300, 0.5, "freeze the weights, and add what the domain needs"),
        (9000, 1.0, "all may move, lower layers least"),
        (9000, 0.5, "let lower layers move too"),
    ],
)
def test_the_fewer_the_rows_and_the_more_alike_the_tasks_the_more_is_frozen(rows, depth, said):
    (decision,) = taken(rows=rows, best_depth=depth, gap=0.08 if depth < 1 else 0.0)
    assert f"{rows:,} rows" in decision.when
    assert f"the probe is best at {depth:.0%} of the height" in decision.when
    assert decision.when.endswith(said)
    assert ("scores +0.080 against the last layer" in decision.when) is (depth < 1)


def test_a_table_has_no_pretrained_network_to_decide_about():
    table = Facts(modality="table", rows=300, num_blocks=1, best_depth=1.0)
    assert decisions(table) == []
    assert [decision.name for decision in decisions(table, "edge")] == ["edge"]


@pytest.mark.inventory("task-similarity", by="regraft plan")
@pytest.mark.inventory("decision-small-far", by="regraft plan")
def test_a_plan_measures_both_and_says_the_rule_and_the_advice(minilm):
    data = DataSpec(path="stdlib-docstrings", limit=120, limit_valid=60, limit_test=20)
    model = ModelSpec(name=str(minilm), max_length=16)
    plan = plan_job(job_recipe(data, model, budget="120s", overrides=["constraint=edge"]))
    said = [reason for reason in plan.reasons if reason.startswith("decision ")]
    assert [reason.split(":")[0].split("-")[0] for reason in said] == ["decision small", "decision edge"]
    assert "120 rows (few: the line is at 1,000)" in said[0]
    assert "the probe is best at" in said[0]
    assert "Risks: " in said[0]
    assert any(reason.startswith("rates of AdamW for texts with 22,") for reason in plan.reasons)
    assert not [reason for reason in plan.reasons if ": warning: " in reason]  # our own candidates heed the rules


def test_advice_on_a_candidate_names_it():
    import torch
    import toy

    from regraft.config.recipe import CandidateSpec, TrainSpec, parse_recipe
    from regraft.data.sources import Columns
    from regraft.phases.advice.candidates import advice_on

    data = toy.blobs(n=64)
    spec = parse_recipe("data: {main: {path: wine}}\nmodels: {main: {network: MLP}}")
    said = advice_on(
        [CandidateSpec(name="probe", steps=0), CandidateSpec(name="full", steps=9, train=TrainSpec(batch_size=3))],
        spec, toy.mlp(), pretrained=[], encoded=Columns({"x": data["x"]}), targets=torch.as_tensor(data["y"]),
        task="multiclass", classes=tuple("abcd"), modality="table",
    )  # fmt: skip
    assert [each.split(",")[0] for each in said] == ["full: note: BATCH1", "full: note: RATE4"]
