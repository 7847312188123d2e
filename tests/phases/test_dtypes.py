"""The card of number formats against torch, what is measured of them, and what a report says beside the published range."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch

from regraft.config.recipe import parse_recipe
from regraft.core.dtypes import BF16, CARD, FP16, FP32, PUBLISHED, TF32, published
from regraft.phases.choose.precision import choose_for_training
from regraft.phases.dtypes import products, step_costs
from regraft.phases.machine import machine
from regraft.phases.report.upkeep import _latency

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.inventory("fp16-facts", by="regraft dtypes")
@pytest.mark.parametrize("one", [FP32, BF16, FP16], ids=lambda one: one.name)
def test_the_card_is_what_torch_says(one):
    facts = torch.finfo(TYPES[one.name])
    assert (one.bits, one.stored_bits) == (facts.bits, facts.bits)
    assert one.largest == facts.max
    assert one.smallest_normal == facts.smallest_normal == facts.tiny
    assert one.epsilon == facts.eps
    assert math.floor(one.decimal_digits) == -round(math.log10(facts.resolution)) + (one.name == "fp32")
    smallest = torch.tensor(one.smallest, dtype=TYPES[one.name])
    assert float(smallest) == one.smallest > 0
    assert float(smallest / 2) == 0


@pytest.mark.inventory("fp16-facts", by="regraft dtypes")
def test_fp16_has_65504_at_most_about_three_digits_and_half_the_memory():
    assert FP16.largest == 65504
    assert 3 <= FP16.decimal_digits < 3.5
    assert (FP16.smallest_normal, FP16.smallest) == (2.0**-14, 2.0**-24)
    assert float(torch.tensor(65520.0, dtype=torch.float16)) == math.inf
    numbers = torch.zeros(1000)
    assert 2 * numbers.half().nbytes == numbers.nbytes
    assert 2 * FP16.stored_bits == FP32.stored_bits


@pytest.mark.inventory("tf32", by="regraft dtypes")
def test_tf32_has_a_10_bit_mantissa_in_a_19_bit_format_with_the_range_of_fp32():
    assert (TF32.exponent, TF32.mantissa, TF32.bits) == (8, 10, 19)
    assert TF32.mantissa == FP16.mantissa
    assert TF32.smallest_normal == FP32.smallest_normal
    assert 0.99 * FP32.largest < TF32.largest < FP32.largest
    assert (BF16.exponent, BF16.mantissa) == (8, 7)


def recipe_on(tmp_path):
    file = tmp_path / "rows.csv"
    lines = [f"{i % 7},{(i * 3) % 11},{'yes' if (i % 7) > 3 else 'no'}" for i in range(200)]
    file.write_text("\n".join(["a,b,label", *lines]))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {{main: {{path: {file}}}}}\nmodels: {{main: {{network: {{MLP: {{width: 64}}}}}}}}\n"
        "stages: [{name: fit, steps: 20}]\ntrain: {batch_size: 64}\n"
    )
    return recipe


@pytest.mark.inventory("amp-fp16", by="regraft dtypes RECIPE")
@pytest.mark.inventory("amp-speed-number", by="regraft dtypes RECIPE")
def test_steps_of_a_recipe_are_timed_and_their_memory_and_loss_compared_in_every_precision(tmp_path):
    found = {cost.precision: cost for cost in step_costs(parse_recipe(recipe_on(tmp_path).read_text()))}
    assert set(found) == {"fp32", "bf16", "fp16"}, "tf32 is not there on a processor"
    plain = found["fp32"]
    assert (plain.ratio, plain.saved_ratio, plain.off) == (1.0, 1.0, 0.0)
    for name in ("bf16", "fp16"):
        cost = found[name]
        assert cost.ratio == pytest.approx(plain.seconds / cost.seconds)
        assert cost.saved_bytes != plain.saved_bytes
        assert 0 < cost.off < 0.05
        assert cost.off == abs(cost.loss - plain.loss)


@pytest.mark.inventory("amp-speed-number", by="regraft dtypes")
def test_matrix_products_are_measured_and_what_is_not_there_is_not_made_up():
    found = {each.precision: each for each in products(side=64)}
    assert [each.name for each in CARD] == list(found)
    assert found["fp32"].ratio == 1.0
    assert (found["tf32"].seconds, found["tf32"].ratio) == (None, None)
    assert found["bf16"].ratio == pytest.approx(found["fp32"].seconds / found["bf16"].seconds)


@pytest.mark.inventory("amp-speed-number", by="regraft adapt")
def test_the_cost_in_the_report_has_the_measured_ratio_beside_the_published_range():
    sentence = choose_for_training(lambda mode: {"fp32": 0.03, "bf16": 0.02}[mode])[2]
    assert sentence.endswith(
        "so bf16 is 1.50 times as fast here (published: 1.3 to 2.0 times, on GPUs with units for it)"
    )
    assert PUBLISHED == (1.3, 2.0)
    facts = _latency(SimpleNamespace(metrics={"reasons": ["a rule", sentence]}))  # type: ignore[arg-type]
    assert facts == [("Mixed precision", sentence)]
    assert _latency(SimpleNamespace(metrics={})) == []  # type: ignore[arg-type]


@pytest.mark.inventory("tf32", by="regraft train")
def test_the_machine_record_says_how_tf32_is_switched_where_there_is_a_gpu(monkeypatch):
    assert "tf32" not in machine()["hardware"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert machine()["hardware"]["tf32"] == {"convolutions": True, "products": "highest"}


@pytest.mark.inventory("fp16-facts", by="regraft dtypes")
def test_the_command_prints_the_card_and_what_was_measured(tmp_path):
    from typer.testing import CliRunner

    from regraft.cli.app import app

    shown = CliRunner().invoke(app, ["dtypes"])
    assert shown.exit_code == 0
    for text in ("19 (1 + 8 + 10)", "65504", published()):
        assert text in shown.stdout
    told = json.loads(CliRunner().invoke(app, ["dtypes", str(recipe_on(tmp_path)), "--json"]).stdout)
    assert [one["name"] for one in told["formats"]] == ["fp32", "tf32", "bf16", "fp16"]
    assert told["published"] == published()
    assert [one["precision"] for one in told["steps"]] == ["fp32", "bf16", "fp16"]
    table = CliRunner().invoke(app, ["dtypes", str(recipe_on(tmp_path))])
    assert "a step of the recipe" in table.stdout
