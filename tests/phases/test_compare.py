"""Fine-tuning against training from scratch: the budgets are equal, and on real pretrained weights the claim holds."""

from __future__ import annotations

import json

import pytest
import torch

from regraft.config.recipe import parse_recipe
from regraft.errors import ConfigError
from regraft.models.fresh import with_fresh_weights
from regraft.models.load import load_backbone
from regraft.phases.compare import FINE_TUNED, SCRATCH, Point, means, rows_to_reach, strategies, verdict
from regraft.phases.resolve import resolved


def recipe(model: str, data: str, **options) -> str:
    """A recipe to train as YAML, which JSON is."""
    return json.dumps(
        {
            "data": {"main": {"path": data, "image": "img", "label": "label", "limit": 120}},
            "models": {"main": {"name": model}},
            "train": {"batch_size": 16, "optimizer": {"AdamW": {"lr": 0.001}}},
            "stages": [{"name": "adapt", "steps": 16}],
            "techniques": [{"LastK": {"blocks": 3}}],
            "probe": {},
        }
        | options
    )


def test_from_scratch_keeps_rows_steps_and_batches_and_leaves_out_what_is_for_pretrained_weights():
    spec = parse_recipe(recipe("some/model", "data.csv"))
    both = strategies(spec, scratch_rate=5.0)
    assert both[FINE_TUNED] == spec
    scratch = both[SCRATCH]
    assert (scratch.data, scratch.stages, scratch.seed) == (spec.data, spec.stages, spec.seed)
    assert scratch.train.batch_size == spec.train.batch_size
    assert scratch.train.optimizer.lr == pytest.approx(5 * spec.train.optimizer.lr)
    assert (scratch.techniques, scratch.probe, scratch.main_model().weights) == ((), None, "fresh")


def test_the_factor_on_the_rate_is_on_that_of_fine_tuning_where_the_recipe_names_none():
    spec = parse_recipe(recipe("some/model", "data.csv", train={"optimizer": "AdamW"}))
    rates = {name: resolved(each).train.optimizer.lr for name, each in strategies(spec, scratch_rate=10.0).items()}
    assert rates[SCRATCH] == pytest.approx(10 * rates[FINE_TUNED])


def test_a_recipe_without_stages_or_without_a_pretrained_model_is_refused():
    with pytest.raises(ConfigError, match="needs a recipe to train, with `stages:`"):
        strategies(parse_recipe(recipe("some/model", "data.csv", stages=[])))
    with pytest.raises(ConfigError, match=r"needs a pretrained model under models.main.name"):
        strategies(parse_recipe(recipe("some/model", "data.csv", models={"main": {"network": "ConvNet"}})))


def test_fresh_weights_are_a_function_of_the_seed_and_none_of_the_pretrained_ones(shared_data):
    folder = str(shared_data("weights_resnet20_cifar10"))
    pretrained = {n: p.clone() for n, p in load_backbone(folder, modality="image").module.named_parameters()}
    one, same, other = (
        dict(with_fresh_weights(load_backbone(folder, modality="image"), seed=seed).module.named_parameters())
        for seed in (0, 0, 1)
    )
    matrices = [name for name, value in one.items() if value.ndim > 1]
    assert matrices
    for name in matrices:
        assert torch.equal(one[name], same[name])
        assert not torch.equal(one[name], other[name])
        assert not torch.equal(one[name], pretrained[name])


def point(strategy, rows, score, seed=0):
    return Point(strategy=strategy, fraction=rows / 100, rows=rows, seed=seed, score=score, course=((1.0, score),))


def test_the_rows_to_reach_are_the_fewest_with_the_score_of_scratch():
    points = [point(SCRATCH, 10, 0.3), point(SCRATCH, 100, 0.6), point(SCRATCH, 100, 0.8, seed=1)]
    points += [point(FINE_TUNED, 10, 0.65), point(FINE_TUNED, 50, 0.75), point(FINE_TUNED, 100, 0.9)]
    assert means(points, SCRATCH) == [(10, 0.3), (100, pytest.approx(0.7))]
    assert rows_to_reach(points) == (50, 100, pytest.approx(0.7))
    assert (
        verdict(points)
        == "fine-tuning reaches the 0.7000 of training from scratch on 100 rows with 50: 2 times fewer rows"
    )
    worse = [point(SCRATCH, 100, 0.9), point(FINE_TUNED, 100, 0.8)]
    assert "does not reach the 0.9000" in verdict(worse)
    level = [point(SCRATCH, 100, 0.8), point(FINE_TUNED, 100, 0.8)]
    assert verdict(level).endswith("no fewer rows")
