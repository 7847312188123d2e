"""Forgetting: linear CKA against numpy, and what a network that has forgotten looks like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toy
from scipy.stats import ortho_group

from regraft.phases.evaluate.forgetting import forgetting, linear_cka, sentence


def by_numpy(x, y):
    """Kornblith et al. 2019, eq. 4 with linear kernels: HSIC over centred features."""
    x, y = (each - each.mean(0) for each in (x, y))
    return np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def test_cka_is_that_of_the_cross_covariances_in_numpy():
    drawn = np.random.default_rng(0)
    x, y = drawn.normal(size=(40, 7)), drawn.normal(size=(40, 5))
    y[:, :3] += x[:, :3]
    assert linear_cka(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(by_numpy(x, y), rel=1e-10)


def test_cka_is_blind_to_rotation_and_scale_and_to_nothing_else():
    x = torch.randn(30, 6, dtype=torch.float64)
    turned = 3.0 * x @ torch.from_numpy(ortho_group.rvs(6, random_state=0)) + 5.0
    assert linear_cka(x, turned) == pytest.approx(1.0, abs=1e-12)
    assert linear_cka(x, torch.randn(30, 6)) < 0.7
    assert linear_cka(torch.ones(4, 2), torch.ones(4, 3)) == 1.0
    assert linear_cka(torch.ones(4, 2), torch.randn(4, 3)) == 0.0


class Texts:
    """Encoded texts of six tokens, drawn from a seed."""

    inputs = ("input_ids", "attention_mask")

    def __init__(self, rows: int) -> None:
        self.ids = torch.randint(1, 40, (rows, 6), generator=torch.Generator().manual_seed(3))

    @property
    def lengths(self):
        return np.full(len(self.ids), 6)

    def __len__(self):
        return len(self.ids)

    def collate(self, rows):
        ids = self.ids[torch.from_numpy(rows)]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class Source:
    """Labelled rows of a source: does a text hold more large token ids than small ones?"""

    task, num_outputs = "binary", 2

    class materials:
        class dataset:
            splits = ("test",)

    def __init__(self) -> None:
        self.texts = Texts(200)

    def encoded(self, split):
        return self.texts

    def targets(self, split):
        return (self.texts.ids.float().mean(1) > 20).long()


def grafts():
    """Two grafts with the same weights."""
    return [toy.bert_graft(blocks=2, depths=(2,)) for _ in range(2)]


@pytest.mark.inventory("catastrophic-forgetting", by="data.source")
def test_a_network_that_was_not_changed_has_forgotten_nothing():
    before, after = grafts()
    section = forgetting(before, after, Texts(64), Source())
    assert section["source"]["before"] == section["source"]["after"]
    assert section["source"]["before"] > 0.6, "the labels can be read off the features at all"
    assert section["drift"]["by_depth"].keys() == {"0", "1", "2"}
    assert all(value == pytest.approx(0, abs=1e-9) for value in section["drift"]["by_depth"].values())


@pytest.mark.inventory("catastrophic-forgetting", by="data.source")
def test_a_network_whose_upper_block_was_wrecked_shows_it_at_the_top_and_in_the_source_metric():
    before, after = grafts()
    with torch.no_grad():
        for name, parameter in after.named_parameters():
            if "layer.1." in name:
                parameter.mul_(0).add_(1e-3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    section = forgetting(before, after, Texts(64), Source())
    drift = section["drift"]["by_depth"]
    assert max(drift["0"], drift["1"]) < 1e-9
    assert drift["2"] == section["drift"]["top"] > 0.2
    assert section["source"]["change"] < 0
    assert "before and" in sentence(section)


@pytest.mark.inventory("catastrophic-forgetting", by="data.source")
def test_without_source_data_it_says_that_the_source_metric_cannot_be_measured_and_gives_the_drift():
    before, after = grafts()
    section = forgetting(before, after, Texts(64), None)
    assert section["source"] is None
    assert "cannot be measured, for the recipe names no data of it" in section["why"]
    assert section["drift"]["measure"].startswith("1 - linear CKA")
    assert "cannot be measured" in sentence(section)


@pytest.mark.slow
@pytest.mark.inventory("catastrophic-forgetting", by="regraft adapt with data.source")
def test_the_whole_path_measures_what_it_has_cost_the_source(tmp_path):
    import json

    from regraft.config.data import DataSpec
    from regraft.config.recipe import ModelSpec
    from regraft.models.networks import ConvNet
    from regraft.phases.path import job_recipe, run_job

    module = ConvNet(width=4).build((3, 16, 16), 5, seed=0)
    spec = job_recipe(DataSpec(path="digits-5-9", limit=200), ModelSpec(image_size=16), budget="60s", strategy="full")
    spec = spec.replaced(data=spec.data | {"source": DataSpec(path="digits-0-4")})
    metrics = json.loads((run_job(spec, tmp_path / "run", module=module).path / "metrics.json").read_text())
    if metrics["winner"] == "probe":
        pytest.skip("the probe won, so nothing was trained that could forget")
    assert 0 < metrics["forgetting"]["source"]["before"] <= 1
    assert metrics["forgetting"]["drift"]["by_depth"]["0"] == pytest.approx(0, abs=0.2)
