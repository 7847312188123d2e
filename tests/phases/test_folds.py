"""Cross-validation: the cost is said first, every row is validated once, a holdout stays the default."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.config.data import DataSpec
from regraft.config.recipe import parse_recipe
from regraft.data.read import load
from regraft.data.splits import fold_numbers
from regraft.errors import ConfigError, DataError
from regraft.phases import folds as module
from regraft.phases.folds import cost_of, train_folds
from regraft.phases.progress import Silent

RECIPE = "data: {main: {path: wine}}\nmodels: {main: {network: MLP}}\nstages: [{name: a, steps: 3}]"


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(-1, 4), min_size=2, max_size=120),
    folds=st.integers(2, 6),
    groups=st.integers(1, 40),
    seed=st.integers(0, 5),
)
def test_folds_are_of_one_size_class_by_class_and_part_no_unit(labels, folds, groups, seed):
    labels = np.array(labels)
    number = fold_numbers(labels, None, folds, seed)
    assert ((number == -1) == (labels < 0)).all()
    for label in set(labels[labels >= 0].tolist()):
        counts = np.bincount(number[labels == label], minlength=folds)
        assert counts.max() - counts.min() <= 1
    units = np.random.default_rng(seed).integers(0, groups, len(labels))
    kept = fold_numbers(labels, units, folds, seed)
    assert all(len(set(kept[units == unit].tolist())) == 1 for unit in set(units.tolist()))


@pytest.mark.inventory("no-cv-nn", by="regraft train --folds K")
def test_every_training_row_is_validated_once_and_the_test_rows_never_move():
    parts = [load(DataSpec(path="wine", folds=3, fold=fold)).splits for fold in range(3)]
    held = [set(part["valid"].rows.tolist()) for part in parts]
    assert sum(map(len, held)) == len(set.union(*held))
    assert len({frozenset(part["test"].rows.tolist()) for part in parts}) == 1
    assert all(set.union(*held) == set(part["train"].rows) | set(part["valid"].rows) for part in parts)


class Heard(Silent):
    def __init__(self):
        self.said: list[str] = []

    def say(self, sentence: str, /) -> None:
        self.said.append(sentence)


@pytest.mark.inventory("no-cv-nn", by="regraft train --folds K")
def test_the_cost_is_said_before_anything_trains(tmp_path, monkeypatch):
    order, heard, real = [], Heard(), module.train_job

    def train_job(spec, out, *, reporter):
        order.append((len(reporter.said), spec.data["main"].fold))
        return real(spec, out, reporter=reporter)

    monkeypatch.setattr(module, "train_job", train_job)
    monkeypatch.setattr("regraft.phases.train.write_report", lambda run: run)
    found = train_folds(parse_recipe(RECIPE), tmp_path / "cv", folds=2, reporter=heard)
    assert heard.said[0] == cost_of(parse_recipe(RECIPE), 2)
    assert "2 trainings of 3 steps, 6 in all, 2 times the work of the one holdout that is the default" in heard.said[0]
    assert order[0] == (1, 0)
    assert order[1][1] == 1
    assert len(found["scores"]) == 2
    assert found["mean"] == pytest.approx(sum(found["scores"]) / 2)
    assert json.loads((tmp_path / "cv" / "folds.json").read_text()) == found
    assert (tmp_path / "cv" / "fold-1" / "model").is_dir()


@pytest.mark.inventory("no-cv-nn", by="regraft train")
def test_a_holdout_is_the_default():
    assert parse_recipe(RECIPE).main_data().folds is None
    assert len(load(DataSpec(path="wine")).splits["valid"]) < 20


def test_what_cannot_be_cross_validated_is_said(tmp_path):
    with pytest.raises(ConfigError, match="--folds: must be at least 2, got 1"):
        train_folds(parse_recipe(RECIPE), tmp_path / "cv", folds=1)
    with pytest.raises(DataError, match="fold must be below folds, 3, got 3"):
        load(DataSpec(path="wine", folds=3, fold=3))
    for name in ("train", "valid"):
        lines = [f"{k * k % 17 + 0.5},{'ab'[k % 2]}" for k in range(40)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["x,label", *lines]))
    with pytest.raises(DataError, match="has a validation split of its own"):
        load(DataSpec(path=str(tmp_path), folds=3))


def test_with_patience_a_fold_has_the_score_of_the_weights_that_it_ended_with():
    results = [{"score": 0.7, "loss": 0.5}, {"score": 0.9, "loss": 0.4}, {"score": 0.8, "loss": 0.3}]
    for validate, score in (("{patience: 2}", 0.9), ("{}", 0.8)):
        spec = parse_recipe(f"{RECIPE}\nvalidate: {validate}")
        assert module._score({"validations": {"a": results}}, spec) == score
