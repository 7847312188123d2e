"""Features of the probe that an earlier run has left are taken from there, and only where nothing that decides them changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import toy

from regraft.data.store import Keeping
from regraft.data.text import EncodedText
from regraft.models.graft import Graft
from regraft.phases.choose.features import all_features


@pytest.fixture
def graft() -> Graft:
    return toy.bert_graft(blocks=3, depths=(3,))


def texts() -> EncodedText:
    random = np.random.default_rng(1)
    lengths = random.integers(3, 12, 40)
    ids = random.integers(1, 50, lengths.sum()).astype(np.int32)
    return EncodedText(ids, lengths, np.zeros(40, bool), pad_id=0)


def read(graft, encoded, folder, **changes):
    """The features, and how many rows were computed for them."""
    rows: list[int] = []
    keeping = Keeping(max_bytes=changes.pop("max_bytes", 1 << 24), folder=folder)
    options = {"precision": "fp32", "keeping": keeping, "progress": rows.append} | changes
    return all_features(graft, encoded, **options), sum(rows)


def test_a_second_run_computes_nothing_and_reads_the_same_bits(graft, tmp_path):
    first, computed = read(graft, texts(), tmp_path)
    again, computed_again = read(graft, texts(), tmp_path)
    plain = all_features(graft, texts(), precision="fp32")
    assert (computed, computed_again) == (40, 0)
    assert first.keys() == again.keys() == plain.keys()
    assert all(torch.equal(first[read], plain[read]) and torch.equal(again[read], plain[read]) for read in plain)


def test_other_weights_data_precision_or_pools_are_computed(graft, tmp_path):
    read(graft, texts(), tmp_path)
    other = replace(texts(), ids=texts().ids[::-1].copy())
    assert read(graft, other, tmp_path)[1] == 40
    assert read(graft, texts(), tmp_path, precision="bf16")[1] == 40
    assert read(graft, texts(), tmp_path, pools=("mean",))[1] == 40
    with torch.no_grad():
        next(graft.backbone.parameters()).add_(0.1)
    assert read(graft, texts(), tmp_path)[1] == 40


def test_features_larger_than_the_room_are_computed_and_not_left_behind(graft, tmp_path):
    features, computed = read(graft, texts(), tmp_path, max_bytes=1000)
    assert computed == 40
    assert not list(tmp_path.iterdir())
    assert features.keys() == all_features(graft, texts(), precision="fp32").keys()


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_copy(graft, tmp_path):
    (tmp_path / "file").write_text("no folder")
    features, computed = read(graft, texts(), tmp_path / "file" / "stores")
    assert computed == 40
    plain = all_features(graft, texts(), precision="fp32")
    assert all(torch.equal(features[read], plain[read]) for read in plain)
