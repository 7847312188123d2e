"""demo, adapt, train and resume: what is shown, and that an interrupted run goes on to the same result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from cli.tables import HEADER, points, write_csv


def test_the_end_of_a_run_is_five_lines_the_report_and_how_to_predict(regraft, table, tmp_path):
    out = tmp_path / "run"
    result = regraft("adapt", table, "--out", out, "--budget", "15s")
    lines = [line for line in result.stdout.splitlines() if line]
    assert [line.partition(":")[0] for line in lines[:5]] == ["Asked", "Won", "Gained", "Calibrated", "Cost"]
    assert lines[5:] == [f"Report: {out}/report.html", f"Predict: regraft predict {out} FILE"]
    headings = [line.split()[2].rstrip(":") for line in result.stderr.splitlines() if line[6:9] == " s "]
    assert headings == ["data", "audit", "probe", "plan", "race", "adapt", "calibrate", "evaluate", "report"]


def test_quiet_says_nothing_and_json_is_all_of_standard_output(regraft, table, tmp_path):
    result = regraft("adapt", table, "--out", tmp_path / "run", "--strategy", "probe", "--quiet", "--json")
    assert result.stderr == ""
    content = json.loads(result.stdout)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert content["final"] == metrics["final"]
    assert content["report"] == str(tmp_path / "run" / "report.html")


def test_a_stopped_run_is_resumed_to_the_result_it_would_have_had(regraft, table, tmp_path, monkeypatch):
    import regraft.phases.path as path

    recipe = tmp_path / "recipe.yaml"
    assert regraft("plan", table, "--budget", "15s", "--out", recipe, "--quiet").exit_code == 0
    assert regraft("adapt", recipe, "--out", tmp_path / "whole", "--quiet").exit_code == 0

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(path, "calibrate_phase", interrupted)
        result = regraft("adapt", recipe, "--out", out, "--quiet")
    assert result.exit_code == 130
    assert result.stderr == f"regraft: stopped; {out} holds what is done, go on with `regraft resume {out}`\n"
    assert regraft("resume", out, "--quiet").exit_code == 0
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]
    finals = [json.loads((tmp_path / name / "metrics.json").read_text())["final"] for name in ("whole", "stopped")]
    assert finals[0] == finals[1]


def test_a_run_stopped_before_it_began_says_that_nothing_was_written(regraft, table, tmp_path, monkeypatch):
    import regraft.phases.opening as opening

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(opening, "load", interrupted)
    result = regraft("adapt", table, "--out", tmp_path / "run", "--quiet")
    assert (result.exit_code, result.stderr) == (130, f"regraft: stopped; nothing was written to {tmp_path / 'run'}\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_interrupt_from_the_keyboard_ends_with_130_and_says_how_to_go_on(tmp_path):
    data = write_csv(tmp_path / "many.csv", HEADER, points(20_000))
    out = tmp_path / "run"
    command = [sys.executable, "-m", "regraft", "adapt", str(data), "--out", str(out), "--budget", "5m"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    deadline = time.monotonic() + 120
    while not (out / "phases" / "probe.json").exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == f"regraft: stopped; {out} holds what is done, go on with `regraft resume {out}`"
    assert "Traceback" not in said


def test_a_recipe_with_stages_is_trained_and_resumed(regraft, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data: {main: {path: wine}}\nmodels: {main: {network: {MLP: {width: 16, depth: 1}}}}\n"
        "stages: [{name: adapt, steps: 20}]\ntechniques: [SAM]\n"
    )
    out = tmp_path / "run"
    result = regraft("train", recipe, "--out", out, "--quiet", "--set", "stages.0.steps=30")
    assert result.exit_code == 0, result.stderr
    assert f"Report: {out}/report.html" in result.stdout
    weights = (out / "model" / "model.safetensors").read_bytes()
    for phase in ("train", "evaluate", "save", "report"):
        (out / "phases" / f"{phase}.json").unlink()
    (out / "report.html").unlink()
    assert regraft("resume", out, "--quiet").exit_code == 0
    assert (out / "model" / "model.safetensors").read_bytes() == weights
    assert regraft("predict", out, "wine").exit_code == 0


def test_the_demo_chooses_a_folder_that_is_free(regraft, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo-wine").mkdir(parents=True)
    result = regraft("demo", "--sample", "wine", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert "Report: runs/demo-wine-2/report.html" in result.stdout
    assert (tmp_path / "runs" / "demo-wine-2" / "report.html").exists()


def test_the_network_of_the_digits_demo_is_a_function_of_the_seed_and_learns():
    import torch

    from regraft.phases.demo import pretrained_on_digits
    from regraft.phases.progress import Silent

    one, two = (pretrained_on_digits(Silent(), steps=12) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.slow
def test_the_digits_demo_beats_a_probe_on_the_last_layer_and_can_be_resumed(regraft, tmp_path):
    out = tmp_path / "run"
    result = regraft("demo", "--sample", "digits", "--out", out, "--quiet", "--json")
    assert result.exit_code == 0, result.stderr
    metrics = json.loads((out / "metrics.json").read_text())
    final, last = (metrics[name]["test"]["accuracy"]["value"] for name in ("final", "last_layer_probe"))
    assert final > last
    (out / "phases" / "evaluate.json").unlink()
    (out / "report.html").unlink()
    assert regraft("resume", out, "--quiet").exit_code == 0
    assert json.loads((out / "metrics.json").read_text())["final"] == metrics["final"]
