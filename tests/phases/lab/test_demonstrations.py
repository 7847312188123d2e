"""Each demonstration shows what it says: its numbers, its pictures and its page."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from functools import cache

import pytest
import torch
from typer.testing import CliRunner

from regraft.cli.app import app
from regraft.config.recipe import recipe_from_tree
from regraft.errors import ConfigError
from regraft.phases.lab import momentum, saddle
from regraft.phases.lab.page import html, markdown, pictures
from regraft.phases.lab.registry import DEMONSTRATIONS, demonstration, summaries
from regraft.phases.report.contours import segments


@cache
def shown(name):
    return demonstration(name)


def numbers(name):
    return shown(name).numbers


def lab(*words):
    return CliRunner().invoke(app, ["lab", *map(str, words)])


@pytest.mark.inventory("saddle", by="regraft lab saddle")
def test_sgd_is_slow_at_a_saddle_momentum_escapes_and_adaptive_steps_are_fast():
    steps = numbers("saddle")["steps"]
    assert steps["SGD with momentum"] < 0.5 * steps["SGD"]
    assert max(steps["Adam"], steps["RMSprop"], steps["Adagrad"]) < 0.5 * steps["SGD with momentum"]
    start = torch.tensor([0.0, 0.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(saddle.saddle(start), start)
    assert not gradient.any()


@pytest.mark.inventory("gd-vs-sgd-cost", by="regraft lab double-well")
def test_sgd_leaves_the_shallow_well_in_more_seeds_than_gradient_descent_at_a_64th_of_the_cost():
    found = numbers("double-well")
    assert found["escaped"]["64"] == 0
    assert found["escaped"]["1"] >= 18  # of 40
    assert (found["gradients_per_step"]["64"], found["gradients_per_step"]["1"]) == (64, 1)
    again = demonstration("double-well", seed=1).numbers["escaped"]
    assert again["1"] > again["64"]


@pytest.mark.inventory("local-minima", by="regraft lab local-minima")
def test_cycles_and_noise_leave_a_local_minimum_that_a_constant_rate_stays_in():
    found = numbers("local-minima")
    assert found["ends"]["constant rate"] > 1.5
    assert found["ends"]["cyclical rate"] < 0.1
    assert found["ends"]["noise that dies down"] < 0.1
    assert found["plateau"]["cyclical rate"] < 0.5 * found["plateau"]["constant rate"]


@pytest.mark.inventory("linreg-demo", by="regraft lab linear-regression")
def test_the_analytic_gradient_is_autograds_and_descent_ends_at_the_closed_form():
    found = numbers("linear-regression")
    assert found["gradients_apart"] < 1e-12
    assert found["found"] == pytest.approx(found["closed"], rel=1e-6)
    assert "the step 0.1 times" in shown("linear-regression").about


@pytest.mark.inventory("convex-guarantee", by="regraft lab convex")
def test_all_starts_end_together_on_the_convex_function_and_in_several_minima_on_the_other():
    found = numbers("convex")
    assert found["distinct"]["convex"] == 1
    assert found["distinct"]["not convex"] >= 3
    assert found["chords_above"]["convex"] == 1.0
    assert found["chords_above"]["not convex"] < 0.9


@pytest.mark.inventory("vectorisation", by="regraft lab vectorisation")
def test_a_batch_at_once_gives_the_same_gradient_several_times_faster():
    found = numbers("vectorisation")
    assert found["apart"] < 1e-5
    assert found["ratio"] > 3


@pytest.mark.inventory("wd-vs-l2", by="regraft lab weight-decay")
def test_decay_and_penalty_agree_under_sgd_and_differ_under_adam():
    apart = numbers("weight-decay")["apart"]
    assert apart["SGD"] < 1e-12
    assert apart["Adam"] > 0.3
    assert apart["Adam's own weight_decay"] < 1e-12  # torch's Adam means the penalty


@pytest.mark.inventory("momentum-direction", by="regraft lab momentum")
def test_momentum_keeps_its_direction_adaptive_steps_are_per_parameter_and_adam_does_both():
    found = numbers("momentum")
    direction, ratio, steps = found["kept_direction"], found["first_step_ratio"], found["steps"]
    assert min(direction["momentum"], direction["Adam"]) > 0.8
    assert max(abs(direction["SGD"]), direction["RMSprop"], direction["Adagrad"]) < 0.4
    assert ratio["SGD"] == ratio["momentum"] == pytest.approx(abs(momentum.START[0]) / (50 * momentum.START[1]))
    assert all(ratio[name] == pytest.approx(1.0) for name in ("Adam", "RMSprop", "Adagrad"))
    assert max(steps["momentum"], steps["Nesterov"]) < 0.5 * steps["SGD"]


@pytest.mark.inventory("single-lr-problem", by="regraft lab per-parameter")
def test_one_rate_moves_layers_very_differently_and_adam_does_not():
    found = numbers("per-parameter")
    assert found["spread"]["SGD"] > 1000
    assert found["spread"]["Adam"] < 3
    assert len(found["moves"]["SGD"]) == 6


@pytest.mark.inventory("minibatch-sgd", by="regraft lab batch-variance")
def test_the_variance_falls_as_one_over_the_batch_and_throughput_rises():
    found = numbers("batch-variance")
    assert found["power"] == pytest.approx(-1.0, abs=0.05)
    rates = found["examples_per_s"]
    assert rates["256"] > 3 * rates["1"]


@pytest.mark.inventory("sgd", by="regraft lab one-example")
def test_single_gradients_are_unbiased_and_a_constant_rate_does_not_settle():
    found = numbers("one-example")
    assert found["apart"] < 1e-12
    assert found["floor"] > 0.001
    assert found["uphill"] > 0


def test_formats_overflow_underflow_and_lose_small_steps():
    found = numbers("dtypes")
    assert found["large"]["fp16"] == "inf"
    assert found["small"]["fp16"] == 0.0 < found["small"]["bf16"]
    assert found["scaled"] == pytest.approx(1e-8, rel=0.01)
    assert found["sums"]["bf16"] == 1.0
    assert found["sums"]["fp32"] == pytest.approx(3.0, rel=1e-3)


def test_optimizers_come_down_on_beales_and_rosenbrocks_functions():
    ends = numbers("trajectories")["ends"]
    assert ends["Beale"]["Adam"] < 1e-4
    assert ends["Rosenbrock"]["Adam"] < 0.1 < ends["Rosenbrock"]["SGD"]


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_its_recipe_parses_and_its_pictures_are_well_formed_and_small(name):
    import yaml

    made = shown(name)
    least = {"data": {"main": {"path": "wine"}}, "models": {"main": {}}}
    recipe_from_tree(least | yaml.safe_load(made.recipe or "{}"))
    for file, text in pictures(name, made).items():
        root = ET.fromstring(text)
        assert root.attrib["aria-label"]
        assert len(text) < 40_000, file
        assert f"images/{file}" in markdown(name, made)
    json.dumps(made.numbers)


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_its_page_is_one_file_without_scripts_or_requests(name):
    page = html(shown(name))
    assert not re.search(r"<script|<link|<img|\bon\w+=|url\(", page)
    assert page.count("http") == page.count("http://www.w3.org/2000/svg")
    for finding in (*shown(name).findings, *shown(name).measured):
        assert finding.partition("'")[0].partition("<")[0] in page


def test_the_command_lists_draws_writes_and_answers(tmp_path):
    assert set(json.loads(lab("--json").stdout)) == set(DEMONSTRATIONS)
    assert "one over the batch size" in " ".join(lab().stdout.split())
    drawn = lab("linear-regression").stdout
    assert "┤" in drawn
    assert "closed form" in drawn
    page = tmp_path / "saddle.html"
    assert lab("saddle", "--html", page).exit_code == 0
    assert "<svg" in page.read_text()
    assert lab("saddle", "--html", page).exit_code == 2  # it is there already
    found = json.loads(lab("saddle", "--json").stdout)
    assert found["numbers"]["steps"] == numbers("saddle")["steps"]


def test_a_name_that_is_not_there_is_one_sentence():
    with pytest.raises(ConfigError, match="did you mean 'saddle'"):
        demonstration("sadle")
    assert all(summaries().values())


def test_a_contour_of_a_cone_is_a_circle():
    at = torch.linspace(-2, 2, 41).tolist()
    grid = [[(x * x + y * y) ** 0.5 for x in at] for y in at]
    points = [point for piece in segments(grid, at, at, 1.5) for point in piece]
    assert len(points) > 80
    assert all((x * x + y * y) ** 0.5 == pytest.approx(1.5, abs=0.01) for x, y in points)
