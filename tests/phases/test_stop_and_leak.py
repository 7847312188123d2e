"""Patience gives the best weights back bit for bit; rows on both sides of a split are named before anything trains."""

import numpy as np
import pytest
import torch
from torch import nn

from regraft.config.data import DataSpec
from regraft.config.recipe import ModelSpec, ValidateSpec, parse_recipe
from regraft.core import fit
from regraft.data.tables import TablePreprocessor
from regraft.errors import DataError
from regraft.phases.judges import Watch
from regraft.phases.path import job_recipe, run_job
from regraft.phases.train import train_job


class Losses:
    """A judge whose results are written down: the least loss is the third."""

    split = "valid"

    def __init__(self, losses):
        self.losses = iter(losses)
        self.seen: list[dict[str, torch.Tensor]] = []

    def measure(self, model: nn.Module) -> dict[str, float]:
        self.seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"score": 0.5, "loss": next(self.losses)}


@pytest.mark.inventory("early-stopping", by="validate: {patience: 2}")
def test_a_stage_stops_after_patience_and_has_its_best_weights_to_the_bit():
    import toy

    judge = Losses([1.0, 0.8, 0.7, 0.9, 0.75, 0.95])
    watch = Watch(judge, ValidateSpec(times=10, patience=2))
    model = nn.Sequential(toy.mlp(), nn.BatchNorm1d(4))
    report = fit(toy.recipe(toy.stage(model=model, steps=100, hooks=(watch,))))
    assert report.stopped == {"toy": "no better validation result in 2 evaluations"}
    assert report.steps["toy"] == 50  # results at 10, 20, ..., the best at 30
    for name, value in model.state_dict().items():
        assert torch.equal(value, judge.seen[2][name])
        assert name.endswith("num_batches_tracked") or not torch.equal(value, judge.seen[-2][name])


def texts(folder, *, train, test):
    """A folder with a file for each split; rows are (text, label, who)."""
    folder.mkdir()
    for name, rows in (("train", train), ("test", test)):
        lines = [f"{text},{label},{who}" for text, label, who in rows]
        (folder / f"{name}.csv").write_text("\n".join(["text,label,who", *lines]))
    return str(folder)


def rows(names, start=0):
    words = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty"]
    made = []
    for k, who in enumerate(names, start):
        text = " ".join(words[(k * step + step) % 10] for step in (1, 3, 7)) + f" item{k} of{k * 7}"
        made.append((text, "ab"[k % 2], who))
    return made


@pytest.mark.inventory("leakage-guard", by="regraft adapt, regraft train")
@pytest.mark.parametrize("planted", ["relative", "duplicate"])
def test_a_planted_relative_or_duplicate_stops_the_path_before_it_trains(planted, tmp_path, minilm):
    train, test = rows([f"p{k}" for k in range(60)]), rows([f"q{k}" for k in range(20)], start=60)
    if planted == "relative":
        test[3] = (*test[3][:2], "p7")
    else:
        test[:5] = [(text, label, who) for (text, label, _), (*_, who) in zip(train[:5], test[:5], strict=True)]
    data = DataSpec(
        path=texts(tmp_path / "data", train=train, test=test), text=("text",), label=("label",), group="who"
    )
    spec = job_recipe(data, ModelSpec(name=str(minilm), max_length=8), budget="30s")
    said = "groups of 'who' stand in train and in test" if planted == "relative" else "5 of 20 rows in test"
    with pytest.raises(DataError, match=said):
        run_job(spec, tmp_path / "run")
    assert not (tmp_path / "run" / "phases" / "probe.json").exists()


TABLE = """
data: {main: {path: PATH, label: label, group: who}}
models: {main: {network: MLP}}
stages: [{name: a, steps: 2}]
"""


@pytest.mark.inventory("leakage-guard", by="regraft train")
def test_training_by_a_recipe_says_which_rows_stand_on_both_sides(tmp_path):
    draw = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    made = [[*(f"{value:.4f}" for value in draw.normal(size=3)), "ny"[k % 2], f"p{k}"] for k in range(80)]
    made[70][:3], made[75][4] = made[5][:3], "p9"  # a duplicate, and a relative
    for name, part in (("train", made[:60]), ("test", made[60:])):
        (folder / f"{name}.csv").write_text("\n".join(["x,y,z,label,who", *(",".join(row) for row in part)]))
    run = train_job(parse_recipe(TABLE.replace("PATH", str(folder))), tmp_path / "run")
    said = run.read_json("phases/start.json")["sentences"]
    assert any("1 groups of 'who' stand in train and in test" in each for each in said)
    assert any("1 of 20 rows in test (5.0%) stand in train with the same inputs" in each for each in said)


@pytest.mark.inventory("input-standardise", by="regraft train, regraft adapt")
def test_inputs_are_standardised_by_the_training_rows_alone_and_the_model_keeps_how(tmp_path):
    from regraft.data.encode import load_preprocessor
    from regraft.data.read import load

    folder = tmp_path / "data"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for name, centre in (("train", 5.0), ("valid", 100.0), ("test", 1000.0)):
        lines = [f"{draw.normal(centre, 2.0):.4f},{'ny'[k % 2]}" for k in range(50)]
        (folder / f"{name}.csv").write_text("\n".join(["x,label", *lines]))
    recipe = TABLE.replace("PATH", str(folder)).replace(", group: who", "")
    run = train_job(parse_recipe(recipe), tmp_path / "run")
    kept = load_preprocessor(run.path / "model")
    assert isinstance(kept, TablePreprocessor)
    dataset = load(DataSpec(path=str(folder), label=("label",)))
    values = {split: np.array(dataset.splits[split].take("x").to_pylist()) for split in ("train", "test")}
    alone = TablePreprocessor.fit({"x": list(values["train"])}, numeric=("x",), categorical=())
    assert kept.to_json() == alone.to_json()
    assert kept.numeric[0].median == pytest.approx(np.median(values["train"]))  # the middle that outliers do not move
    seen, new = (kept.encode({"x": list(values[split])}).collate(np.arange(50))["x"][:, 0] for split in values)
    assert abs(float(np.median(seen))) < 1e-6
    assert float(new.min()) > float(seen.max())  # test rows are not moved to their own middle


@pytest.mark.inventory("input-standardise", by="regraft train, regraft adapt")
def test_a_number_to_predict_has_mean_0_and_deviation_1_on_the_training_rows(tmp_path):
    from regraft.phases.build import assemble

    spec = parse_recipe("data: {main: {path: diabetes}}\nmodels: {main: {network: MLP}}\nstages: [{name: a, steps: 1}]")
    main = assemble(spec).main
    raw, scaled = main.materials.raw_targets("train"), main.targets("train").double()
    assert (float(scaled.mean()), float(scaled.std(correction=0))) == pytest.approx((0.0, 1.0), abs=1e-6)
    test = (main.materials.raw_targets("test") - raw.mean()) / raw.std()
    np.testing.assert_allclose(main.targets("test"), test, rtol=1e-5, atol=1e-6)
