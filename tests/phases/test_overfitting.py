"""Overfitting: the alarm on a planted case, silence on a sound one, and the gap that regularisation makes smaller."""

import json

import numpy as np
import pytest

from regraft.config.recipe import parse_recipe
from regraft.phases.overfitting import gap, overfitting
from regraft.phases.train import train_job

RECIPE = """
data: {main: {path: PATH, valid: 0.4}}
models: {main: {network: {MLP: {width: 64, depth: 1}}}}
train: {batch_size: 32, optimizer: {AdamW: {lr: 0.01, weight_decay: 0.0}}}
stages: [{name: adapt, steps: 120}]
validate: {times: 8}
"""


def written(path, *, noise):
    """A table of 300 rows whose label is the sign of a column, with this share of it turned round."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(300, 10))
    y = (x[:, 0] > 0) ^ (draw.random(300) < noise)
    lines = [",".join([*(f"{value:.4f}" for value in row), "ny"[int(label)]]) for row, label in zip(x, y, strict=True)]
    path.write_text("\n".join([",".join([*(f"c{k}" for k in range(10)), "label"]), *lines]))
    return str(path)


def trained(folder, *, noise, overrides=()):
    text = RECIPE.replace("PATH", written(folder / "data.csv", noise=noise))
    run = train_job(parse_recipe(text, overrides=overrides), folder / "run")
    return run, (run.path / "events.jsonl").read_text().splitlines()


@pytest.mark.inventory("overfit-monitor", by="regraft train, regraft adapt")
def test_noise_learned_by_heart_raises_the_alarm_in_the_report(tmp_path):
    run, events = trained(tmp_path, noise=0.4)
    (said,) = overfitting(events)
    assert "the training loss fell" in said
    assert said in run.read_json("metrics.json")["reasons"]
    assert "overfits: from step" in (run.path / "report.html").read_text()


@pytest.mark.inventory("overfit-monitor", by="regraft train, regraft adapt")
def test_what_carries_over_raises_none(tmp_path):
    _, events = trained(tmp_path, noise=0.0, overrides=["stages=[{name: adapt, steps: 30}]"])
    assert overfitting(events) == []


@pytest.mark.inventory("reg-purpose", by="docs/overfitting.md, technique L2Penalty, Dropout or MixUp")
@pytest.mark.parametrize("technique", ["{L2Penalty: {weight: 0.02}}", "{MixUp: {alpha: 1.0}}"])
def test_regularisation_makes_the_gap_smaller(technique, tmp_path):
    gaps = []
    for name, techniques in (("plain", "[]"), ("regularised", f"[{technique}]")):
        (tmp_path / name).mkdir()
        _, events = trained(tmp_path / name, noise=0.4, overrides=[f"techniques={techniques}"])
        _, seen, new = gap([json.loads(line) for line in events])[-1]
        gaps.append(new - seen)
    assert gaps[1] < 0.6 * gaps[0]


def test_only_the_candidate_asked_for_is_looked_at():
    def lines(name, train, valid):
        for step, (seen, new) in enumerate(zip(train, valid, strict=True), 1):
            yield json.dumps({"candidate": name, "stage": "adapt", "step": step, "loss": seen})
            yield json.dumps({"candidate": name, "stage": "adapt", "step": step, "valid/loss": new, "valid/score": 0.5})

    events = [*lines("full", [1.0, 0.5, 0.1], [1.0, 0.9, 1.3]), *lines("lora", [1.0, 0.5, 0.4], [1.0, 0.9, 0.8])]
    assert len(overfitting(events, "full")) == 1
    assert overfitting(events, "lora") == []
    assert overfitting(lines("x", [1.0, 0.5, 0.49], [1.0, 0.9, 1.3])) == []
    assert overfitting(lines("x", [1.0, 0.5, 0.1], [1.0, 0.9, 0.95])) == []
