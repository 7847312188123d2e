"""What keeps training stable, asked for in a recipe file and reached by `regraft train`."""

from __future__ import annotations

import json

import pytest
import torch

from regraft.config.recipe import parse_recipe
from regraft.models.save import load_model
from regraft.phases.train import train_job

RECIPES = {
    "text of numbers": """
models: {main: {network: {Transformer: {width: 16, heads: 2, depth: 3, norm: pre, residual_scale: depth}}}}
train: {batch_size: 32, precision: bf16, max_value: 0.5, max_norm: 1.0, schedule: {Cosine: {warmup: 0.1}}}
techniques:
  - DropPath: {rate: 0.2}
  - Init: {kind: xavier, nonlinearity: linear}
  - Guard: {gradient_spike: 10.0}
""",
    "weights as functions": """
models: {main: {network: {MLP: {width: 32, depth: 2}}}}
train: {batch_size: 32, precision: fp16, optimizer: {AdamW: {lr: 3.0e-3}}}
techniques:
  - WeightNorm: {modules: blocks}
  - Dropout: {rate: 0.2}
  - DropConnect: {rate: 0.1}
  - WeightAverage: {kind: swa, last: 0.5, every: 5}
""",
}


def table(tmp_path):
    g = torch.Generator().manual_seed(0)
    lines = ["a,b,c,label"]
    for _ in range(240):
        a, b, c = torch.randn(3, generator=g).tolist()
        lines.append(f"{a:.3f},{b:.3f},{c:.3f},{'yes' if a + b > c else 'no'}")
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    return f"data: {{main: {{path: {tmp_path / 'rows.csv'}}}}}\nstages: [{{name: fit, steps: 60}}]\n"


@pytest.mark.inventory("amp-fp16", "grad-clip", "weightnorm", "dropout", "dropconnect", "swa", by="regraft train")
@pytest.mark.inventory("bf16", "pre-norm", "residual-scaling", "droppath", "xavier-init", by="regraft train")
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_with_them_trains_and_its_model_comes_back_plain(name, tmp_path):
    run = train_job(parse_recipe(table(tmp_path) + RECIPES[name]), tmp_path / "run")
    metrics = json.loads((run.path / "metrics.json").read_text())
    model, info = load_model(run.path / "model")
    assert info["surgery"] == []
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert not any("parametrizations" in key for key in model.state_dict())
    assert metrics["final"]["test"]["accuracy"]["value"] > 0.75
    notes = [json.loads(line).get("note", "") for line in (run.path / "events.jsonl").read_text().splitlines()]
    if name == "text of numbers":
        assert any("gradients were clipped in" in note for note in notes)
