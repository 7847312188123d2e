"""The mode that is taken is never slower and never wrong by more than the bound; what was asked for is taken as it is."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regraft.core.seeding import generator
from regraft.errors import ConfigError
from regraft.phases.choose import precision as subject
from regraft.phases.choose.precision import Comparison, choose_for_training, choose_precision, compare, verdict
from regraft.testing import Rows, network

FASTER = Comparison(plain_s=0.02, half_s=0.01, error=0.004, kept=32, rows=32)


class Slowed(nn.Module):
    """A network that takes as long as it is told to, in each mode, and is off by as much in bf16."""

    def __init__(self, *, plain_s=0.0, half_s=0.0, off=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.plain_s, self.half_s, self.off = plain_s, half_s, off

    def forward(self, x):
        half = torch.is_autocast_enabled("cpu")
        time.sleep(self.half_s if half else self.plain_s)
        return x * self.weight + self.off * half * x.flip(1)


def rows(count=64):
    return Rows(torch.randn(count, 8, generator=generator(2)))


@given(st.floats(1e-5, 1), st.floats(1e-5, 1), st.floats(0, 1), st.integers(0, 32))
def test_bf16_is_taken_exactly_where_it_is_faster_and_close(plain_s, half_s, error, kept):
    taken, sentence = verdict(Comparison(plain_s=plain_s, half_s=half_s, error=error, kept=kept, rows=32))
    assert (taken == "bf16") == (half_s <= 0.97 * plain_s and error <= 0.05 and kept >= 0.9 * 32)
    assert sentence.startswith(f"precision {taken}: ")


def test_every_refusal_names_the_number_that_decided():
    assert "saves 3%" in verdict(replace(FASTER, half_s=0.0199))[1]
    assert "off by 8.0%, and 5% are allowed" in verdict(replace(FASTER, error=0.08))[1]
    assert "only 20 of 32 examples keep their largest output, and 90% must" in verdict(replace(FASTER, kept=20))[1]
    assert verdict(replace(FASTER, error=float("nan")))[0] == "fp32"


def test_the_faster_of_two_networks_is_told_from_the_clock():
    assert choose_precision(Slowed(plain_s=0.004, half_s=0.001), rows())[0] == "bf16"
    assert choose_precision(Slowed(plain_s=0.001, half_s=0.004), rows())[0] == "fp32"


def test_wrong_numbers_are_refused_however_fast():
    taken, sentence = choose_precision(Slowed(plain_s=0.004, off=0.5), rows())
    assert taken == "fp32"
    assert "off by 5" in sentence  # |0.5 flip(x)| / |x|


def test_the_error_is_the_relative_difference_of_the_outputs():
    model, sample = network().eval(), rows(32)
    found = compare(model, sample, torch.device("cpu"))
    x = sample.collate(np.arange(32))["x"]
    with torch.no_grad():
        plain = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(x).float()
    assert found.error == pytest.approx(float((half - plain).norm() / plain.norm()), rel=1e-5)
    assert found.kept == int((half.argmax(1) == plain.argmax(1)).sum())
    assert found.rows == 32


def test_it_takes_about_a_quarter_of_a_second_and_leaves_the_model_as_it_was():
    model = network(0.1).train()
    threads, begin = torch.get_num_threads(), time.perf_counter()
    compare(model, rows(), torch.device("cpu"))
    assert time.perf_counter() - begin < 2
    assert model.training
    assert torch.get_num_threads() == threads
    assert all(p.grad is None for p in model.parameters())


def test_a_slow_model_is_measured_on_fewer_rows_and_not_for_long():
    seen = []

    class Slow(Slowed):
        def forward(self, x):
            seen.append(len(x))
            time.sleep(0.02 * len(x))
            return x * self.weight

    begin = time.perf_counter()
    compare(Slow(), rows(8), torch.device("cpu"))
    assert time.perf_counter() - begin < 3
    assert min(seen) <= 3


def test_what_was_asked_for_is_not_measured(monkeypatch):
    monkeypatch.setattr(subject, "compare", lambda *args: pytest.fail("measured"))
    assert choose_precision(network(), rows(), asked="bf16") == ("bf16", "precision bf16: asked for")
    assert choose_precision(network(), rows(), asked="fp32") == ("fp32", "precision fp32: asked for")


def test_a_device_without_bf16_gets_fp32(monkeypatch):
    monkeypatch.setattr(subject, "has_bf16", lambda device: False)
    assert choose_precision(network(), rows()) == ("fp32", "precision fp32: cpu has no bf16 arithmetic")


@pytest.mark.parametrize(
    ("plain", "half", "taken", "slower"),
    [(0.1, 0.06, "bf16", 5), (0.1, 0.098, "fp32", 5), (0.1, 0.04, "bf16", 2), (0.1, 0.3, "fp32", 2)],
)
def test_training_takes_the_mode_its_steps_are_faster_in(plain, half, taken, slower):
    order = []

    def step(mode):
        order.append(mode)
        return {"fp32": plain, "bf16": half}[mode]

    got, seconds, sentence = choose_for_training(step)
    assert got == taken
    assert seconds == pytest.approx(half if taken == "bf16" else plain)
    assert order == ["fp32", "bf16"] * slower + [taken] * (5 - slower)
    assert sentence.startswith(f"training in {taken}: a step takes {half * 1e3:.1f} ms in bf16")


# ---- in the job


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "rows.csv"
    lines = [f"{i % 7},{(i * 3) % 11},{'yes' if (i % 7) > 3 else 'no'}" for i in range(120)]
    file.write_text("\n".join(["a,b,label", *lines]))
    return file


def planned(table, *overrides):
    from regraft.config.data import DataSpec
    from regraft.config.recipe import ModelSpec
    from regraft.phases.path import job_recipe, plan_job

    spec = job_recipe(DataSpec(path=str(table)), ModelSpec(), budget="60s", strategy="full", overrides=list(overrides))
    return plan_job(spec)


def test_an_override_reaches_probe_candidates_and_reasons(table):
    for mode in ("bf16", "fp32"):
        spec = planned(table, f"probe.precision={mode}")
        assert f"precision {mode}: asked for" in spec.reasons
        assert spec.probe.precision == mode
        trained = [c for c in spec.race.candidates if c.steps]
        assert trained
        assert {c.train.precision for c in trained} == {mode}


def test_the_measured_precision_is_written_into_the_recipe_with_its_reason(table):
    spec = planned(table)
    assert spec.probe.precision in ("fp32", "bf16")
    assert re.match(rf"precision {spec.probe.precision}: a forward pass takes [\d.]+ ms in bf16", spec.reasons[0])


def test_an_unknown_precision_is_refused(table):
    with pytest.raises(ConfigError, match="precision"):
        planned(table, "probe.precision=fp8")


def test_a_strategy_that_does_not_fit_is_left_to_the_race_to_refuse(table, monkeypatch):
    from regraft.phases.choose import plan, plan_phase
    from regraft.techniques.transfer.last_k import LastK

    def misfit(*args, **options):
        return real(*args, **options).replaced(techniques=(LastK(blocks=99),))

    real = plan_phase.candidate
    for module in (plan, plan_phase):
        monkeypatch.setattr(module, "candidate", misfit)
    assert [each.steps > 0 for each in planned(table).race.candidates] == [False, True]
