"""regraft landscape: on a run of `train`, on a main job and on a recipe; the numbers are in the file and in the report."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from regraft.config.recipe import parse_recipe
from regraft.errors import ConfigError
from regraft.phases.landscape import landscape
from regraft.phases.train import train_job

RECIPE = """
data: {main: {path: wine}}
models: {main: {network: {MLP: {width: 16}}}}
train: {batch_size: 32, optimizer: {Adam: {lr: 0.01}}}
stages: [{name: fit, steps: 150}]
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield train_job(parse_recipe(RECIPE), tmp_path_factory.mktemp("runs") / "wine").path


@pytest.fixture
def regraft():
    from typer.testing import CliRunner

    from regraft.cli.app import app

    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.inventory("loss-landscape", by="regraft landscape RUN --dimensions 2")
def test_the_lowest_point_of_line_and_plane_is_the_trained_one_and_the_report_shows_them(trained, regraft):
    result = regraft("landscape", trained, "--grid", "9", "--dimensions", "2", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads((trained / "landscape.json").read_text())
    assert found == json.loads(result.stdout)
    assert found["lowest_at"] == 0.0
    lowest = min((value, i, j) for i, row in enumerate(found["plane"]) for j, value in enumerate(row))
    assert lowest[1:] == (4, 4)
    assert found["plane"][4] == pytest.approx(found["line"])
    assert found["line"][0] > 2 * found["loss"]
    page = (trained / "report.html").read_text()
    assert "The loss around the trained weights" in page
    assert page.count("line contour") >= 5
    assert "by 20 steps of Lanczos" in page


@pytest.mark.inventory("sharpness", by="regraft landscape RUN")
def test_every_sharpness_has_a_value_and_names_its_method(trained):
    found = landscape(trained, grid=3)
    assert [each.method for each in found.sharpness] == [
        "epsilon-sharpness",
        "largest Hessian eigenvalue",
        "mean rise under noise",
    ]
    assert all(each.value > 0 for each in found.sharpness)
    assert "Foret" in found.sharpness[0].what


def test_the_loss_in_the_middle_is_that_of_the_saved_model(trained):
    from regraft.phases.predict import load

    found = landscape(trained, grid=3, rows=10_000)
    predictor = load(trained)
    from regraft.config.recipe import read_recipe
    from regraft.phases.build import assemble

    main = assemble(read_recipe(trained / "recipe.yaml")).main
    batch = main.encoded("train").collate(np.arange(len(main.targets("train"))))
    with torch.no_grad():
        loss = F.cross_entropy(predictor.model(**batch), main.targets("train"))
    assert found.rows == len(main.targets("train"))
    assert found.loss == pytest.approx(float(loss), rel=1e-4)


def test_a_recipe_is_trained_first_and_the_same_seed_gives_the_same_numbers(trained, tmp_path, regraft):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    one, other = landscape(path, grid=5), landscape(trained, grid=5)
    assert one.line == pytest.approx(other.line, rel=1e-6)
    shown = regraft("landscape", path, "--grid", "5", "--set", "stages.0.steps=20").stdout
    assert "epsilon-sharpness" in shown
    assert "┤" in shown
    assert "report.html" not in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"grid": 8}, "odd number"),
        ({"split": "test"}, "the test rows are for the final score only"),
        ({"split": "vaild"}, "must be train or valid"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(trained, options, said):
    with pytest.raises(ConfigError, match=said):
        landscape(trained, **options)


def test_a_recipe_without_a_loss_on_labels_is_refused(tmp_path):
    path = tmp_path / "gan.yaml"
    path.write_text(
        "data: {main: {path: wine}}\nmodels: {main: {network: GenerativePair}}\nstages: [{name: play, steps: 1}]\n"
        "techniques: [GAN]\n"
    )
    with pytest.raises(ConfigError, match="a landscape is of a loss on labels"):
        landscape(path, grid=3)


def test_a_grafted_encoder_has_second_derivatives_too(tmp_path):
    """Attention kernels without a second derivative are left out while the curvature is measured."""
    from toy import bert_graft

    from regraft.optim.landscape import largest_eigenvalue
    from regraft.phases.landscape import over

    model = bert_graft(blocks=1, depths=(1,))

    class Tokens:
        def __len__(self):
            return 8

        def collate(self, rows):
            ids = torch.arange(20).repeat(len(rows), 1) + torch.as_tensor(rows)[:, None]
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    from regraft.losses.supervised import cross_entropy

    names = {name for name, p in model.named_parameters() if p.ndim}
    ground = over(model, cross_entropy, Tokens(), torch.arange(8) % 4, names, 8, 0, "all")
    with ground.still():
        found = largest_eigenvalue(ground.loss, ground.weights, steps=3, generator=torch.Generator().manual_seed(0))
    assert found == found


def test_a_main_job_is_measured_over_all_its_weights(tmp_path, monkeypatch, regraft):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    draw = np.random.default_rng(0)
    rows = [f"{a:.3f},{b:.3f},{'up' if a + b > 0 else 'down'}" for a, b in draw.normal(size=(160, 2))]
    (tmp_path / "points.csv").write_text("\n".join(["a,b,label", *rows]))
    run = tmp_path / "run"
    assert regraft("adapt", tmp_path / "points.csv", "--out", run, "--budget", "10s", "--quiet").exit_code == 0
    found = landscape(run, grid=5, split="valid")
    assert found.weights == "all of the model"
    metrics = json.loads((run / "metrics.json").read_text())
    assert found.rows == metrics["data"]["valid"]
    assert found.loss < 0.5 * np.log(2)  # of a coin


def test_a_recipe_is_trained_with_the_rate_that_regraft_train_would_take(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("lr: 0.01}}", "lr: 0.01}}, scale_from: {batch_size: 8, rule: linear}"))
    scaled, plain = landscape(path, grid=3), landscape(path, grid=3, overrides=("train.scale_from=null",))
    assert scaled.loss != plain.loss


def test_a_recipe_with_patience_is_trained_to_the_weights_that_regraft_train_would_keep(tmp_path):
    path = tmp_path / "recipe.yaml"
    text = RECIPE.replace("lr: 0.01", "lr: 0.3") + "validate: {times: 15, patience: 1}\n"
    path.write_text(text)
    run = train_job(parse_recipe(text), tmp_path / "run").path
    assert "no better validation result" in (run / "phases/train.json").read_text()
    assert landscape(path, grid=3).loss == pytest.approx(landscape(run, grid=3).loss, rel=1e-6)
