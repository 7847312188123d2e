"""`regraft check-augment`: a planted change of labels is named, and harmless augmentation is let through."""

from __future__ import annotations

import json

import pytest
from scipy.stats import binomtest
from typer.testing import CliRunner

from regraft.cli.app import app
from regraft.config.recipe import RecipeSpec, dump_recipe, recipe_from_tree
from regraft.errors import ConfigError, RunError
from regraft.phases.augment_check import check_augment, wilson_lower
from regraft.phases.train import train_job


def spec(path: str, *techniques, **train) -> RecipeSpec:
    tree = {
        "data": {"main": {"path": path, "limit": 1500, "limit_valid": 50, "limit_test": 50}},
        "models": {"main": {"network": {"ConvNet": {"width": 8}}, "image_size": 16}},
        "train": {"batch_size": 32, "optimizer": {"AdamW": {"lr": 3e-3}}} | train,
        "stages": [{"name": "fit", "steps": 200}],
        "techniques": list(techniques),
        "validate": {"times": 1},
    }
    return recipe_from_tree(tree)


@pytest.fixture(scope="module")
def reader(shared_data, tmp_path_factory) -> tuple[str, str]:
    """Handwritten digits, and a run on them without augmentation."""
    path = str(shared_data("mnist_5k"))
    return path, str(train_job(spec(path), tmp_path_factory.mktemp("runs") / "reader").path)


@pytest.mark.inventory("label-changing-aug", by="regraft check-augment")
def test_a_planted_rotation_of_6_into_9_is_named_and_small_turns_are_not(reader, tmp_path):
    path, run = reader
    over = {"ImageGeometry": {"rotate": 0, "shift": 0, "scale": 0, "flip": 1.0, "flip_vertical": 1.0}}  # by 180 degrees
    small = {"ImageGeometry": {"rotate": 8, "shift": 0.04, "scale": 0.05}}
    (turned,) = check_augment(spec(path, over), run, looks=1200)
    pairs = {(flip.was, flip.becomes) for flip in turned.flips}
    assert ("6", "9") in pairs
    assert ("9", "6") in pairs
    least = {was: max((f.least for f in turned.flips if f.was == was), default=0.0) for was in "0689"}
    assert max(least["0"], least["8"]) < min(least["6"], least["9"]), "0 and 8 look the same upside down"
    (calm,) = check_augment(spec(path, small), run, looks=1200)
    assert calm.safe, calm.sentence()
    assert calm.changed < 0.1 < turned.changed
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(spec(path, over)))
    shown = CliRunner().invoke(app, ["check-augment", str(recipe), "--run", run, "--looks", "1200", "--json"])
    assert shown.exit_code == 1, shown.output
    (answer,) = json.loads(shown.stdout)
    assert answer["safe"] is False
    assert {(flip["was"], flip["becomes"]) for flip in answer["flips"]} == pairs
    recipe.write_text(dump_recipe(spec(path, small)))
    shown = CliRunner().invoke(app, ["check-augment", str(recipe), "--run", run, "--looks", "1200"])
    assert shown.exit_code == 0, shown.output
    assert "and no class becomes another" in shown.stdout


def test_each_augmentation_is_asked_about_by_itself_and_mixing_is_left_out(reader):
    path, run = reader
    found = check_augment(spec(path, "RandAugment", "ColorJitter", "MixUp", augment=True), run, looks=200)
    assert [one.name for one in found] == ["train.augment", "ColorJitter", "RandAugment"]
    with pytest.raises(ConfigError, match="has no augmentation to check"):
        check_augment(spec(path, "MixUp"), run)
    with pytest.raises(RunError, match="has no model that could be asked"):
        check_augment(spec(path, "ColorJitter"), "/nowhere")


def test_the_lower_end_of_a_share_is_wilsons():
    for count, of in ((0, 30), (3, 40), (20, 21), (25, 25)):
        wanted = binomtest(count, of).proportion_ci(0.90, method="wilson").low  # two-sided 90 % is one-sided 95 %
        assert wilson_lower(count, of) == pytest.approx(wanted, abs=2e-4)
