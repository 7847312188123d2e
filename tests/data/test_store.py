"""Stores give back what was computed, hold what they are allowed to, and never answer for anything else."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regraft.data.store import NOTES, Keeping, Wanted, fill
from regraft.data.text import EncodedText
from regraft.errors import RunError
from regraft.models.frozen import Frozen, content_key
from regraft.models.tap import whole

ROOM = 1 << 20


class Tokens(nn.Module):
    """A per-token function of ids and mask with a dropout that must be off."""

    inputs = ("input_ids", "attention_mask")

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embedding = nn.Embedding(1000, 5)
        self.dropout = nn.Dropout(0.5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.dropout(self.embedding(input_ids)).cumsum(1)


def texts(n: int = 60, seed: int = 0) -> EncodedText:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 20, n)
    ids = random.integers(1, 1000, lengths.sum()).astype(np.int32)
    return EncodedText(ids, lengths.astype(np.int64), np.zeros(n, bool), pad_id=0)


def both(own: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    hidden = own(batch["input_ids"], batch["attention_mask"])
    return {"hidden": hidden, "first": hidden[:, 0]}


def filled(keeping: Keeping, *, encoded: EncodedText | None = None, identity: str = "a"):
    wanted = [Wanted(columns=(name,), identity={"of": identity}) for name in ("hidden", "first")]
    return fill(Tokens().train(), both, encoded or texts(), wanted, keeping=keeping, precision="fp32")


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_token_results_come_back_as_computed_without_padding_and_padded_to_any_length(tmp_path, place):
    encoded, model = texts(), Tokens().eval()
    hidden, first = filled(Keeping(max_bytes=ROOM, folder=tmp_path if place == "disk" else None))
    assert hidden.num_bytes == encoded.lengths.sum() * 5 * 4
    assert first.num_bytes == 60 * 5 * 4
    rows = np.array([31, 2, 59, 2, 0])
    batch = encoded.collate(rows)
    expected = model(**batch).detach() * batch["attention_mask"][..., None]
    longest = batch["input_ids"].shape[1]
    assert torch.equal(hidden.columns["hidden"].rows(rows, longest), expected)
    assert torch.equal(hidden.columns["hidden"].rows(rows), expected)
    longer = hidden.columns["hidden"].rows(rows, longest + 3)
    assert torch.equal(longer[:, :longest], expected)
    assert not longer[:, longest:].any()
    assert torch.equal(first.columns["first"].rows(rows), expected[:, 0])


def test_only_the_examples_that_fit_are_kept():
    lengths = texts().lengths
    budget = 20 * 5 * 4 + int(lengths[:20].sum()) * 5 * 4 + 3
    hidden, first = filled(Keeping(max_bytes=budget))
    assert hidden.kept == first.kept == 20
    assert hidden.num_bytes + first.num_bytes <= budget


def test_half_the_room_costs_the_rounding_that_is_reported():
    exact, _ = filled(Keeping(max_bytes=ROOM))
    half, _ = filled(Keeping(max_bytes=ROOM, half=True))
    assert half.num_bytes == exact.num_bytes // 2
    ours, theirs = half.columns["hidden"].rows(np.arange(60)), exact.columns["hidden"].rows(np.arange(60))
    assert ours.dtype == torch.float32
    off = float((ours - theirs).abs().max() / theirs.abs().max())
    assert 0 < off <= half.rounding <= 2**-8
    assert exact.rounding == 0


def test_a_store_on_disk_is_opened_again_and_not_computed_again(tmp_path):
    keeping = Keeping(max_bytes=ROOM, folder=tmp_path)
    once, _ = filled(keeping)
    calls = []

    def counting(own, batch):
        calls.append(len(batch["input_ids"]))
        return both(own, batch)

    wanted = [Wanted(columns=("hidden",), identity={"of": "a"}), Wanted(columns=("first",), identity={"of": "a"})]
    again = fill(Tokens(), counting, texts(), wanted, keeping=keeping, precision="fp32")
    assert calls == [2], "two examples show the shapes, nothing else is run"
    rows = np.arange(60)
    assert torch.equal(again[0].columns["hidden"].rows(rows), once.columns["hidden"].rows(rows))
    assert not list(tmp_path.glob("*.part-*"))


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "notes", "other"])
def test_a_damaged_store_or_one_that_something_else_made_is_an_error(tmp_path, damage):
    keeping = Keeping(max_bytes=ROOM, folder=tmp_path)
    filled(keeping)
    place = next(p for p in tmp_path.iterdir() if "hidden" in (p / NOTES).read_text())
    file, notes = place / "0.bin", place / NOTES
    if damage == "flip":
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    elif damage == "missing":
        file.unlink()
    elif damage == "notes":
        notes.write_text("{")
    else:
        notes.write_text(json.dumps(json.loads(notes.read_text()) | {"identity": {"of": "somebody else"}}))
    words = {"notes": "no readable store.json", "other": "was made by other results"}.get(damage, "damaged or missing")
    with pytest.raises(RunError, match=words):
        filled(keeping)


def test_the_bytes_of_all_stores_count_together():
    """Both stores hold the same column."""
    wanted = [Wanted(columns=("first",)), Wanted(columns=("first",))]
    stores = fill(Tokens(), both, texts(), wanted, keeping=Keeping(max_bytes=10 * 2 * 5 * 4), precision="fp32")
    assert [store.kept for store in stores] == [10, 10]


def test_a_cache_that_grows_too_large_loses_its_eldest_store(tmp_path, monkeypatch):
    keeping = Keeping(max_bytes=ROOM, folder=tmp_path)
    for seed in range(3):
        filled(keeping, encoded=texts(seed=seed), identity=str(seed))
    everything = sum(file.stat().st_size for file in tmp_path.rglob("*.bin"))
    monkeypatch.setenv("REGRAFT_CACHE_GB", str(everything / 1e9))
    filled(keeping, encoded=texts(seed=3), identity="3")
    assert 0 < len(list(tmp_path.iterdir())) < 8
    assert any('"of": "3"' in (place / NOTES).read_text() for place in tmp_path.iterdir())


def test_what_fails_on_the_way_leaves_nothing_behind(tmp_path):
    def fails(own, batch):
        if len(batch["input_ids"]) > 2:
            raise RuntimeError("out of luck")
        return both(own, batch)

    with pytest.raises(RuntimeError, match="out of luck"):
        fill(Tokens(), fails, texts(), [Wanted(columns=("first",))],
             keeping=Keeping(max_bytes=ROOM, folder=tmp_path), precision="fp32")  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changes", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_thousand_changes_and_not_one_stale_answer(tmp_path, monkeypatch, changes):
    """Weights, data, cut, precision, type and structure are changed one at a time: the store is never that of before."""
    random = np.random.default_rng(0)
    model, encoded = Tokens().eval(), texts(6)
    monkeypatch.setenv("REGRAFT_CACHE_GB", "1")
    keeping = Keeping(max_bytes=ROOM, folder=tmp_path)
    rows = np.arange(6)
    known = {p.name for p in _opened(model, encoded, keeping, tmp_path)[1]}
    for number in range(changes):
        kind = ("weight", "token", "padding", "precision", "half")[number % 5]
        precision, here = "fp32", keeping
        if kind == "weight":
            with torch.no_grad():
                flat = model.embedding.weight.reshape(-1)
                at = int(random.integers(len(flat)))
                flat[at] = torch.nextafter(flat[at], flat.new_tensor(9.0))
        elif kind == "token":
            ids = encoded.ids.copy()
            ids[random.integers(len(ids))] ^= 1
            encoded = replace(encoded, ids=ids)
        elif kind == "padding":
            encoded = replace(encoded, pad_id=number)
        elif kind == "precision":
            precision = "bf16"
        else:
            here = replace(keeping, half=True)
        store, places = _opened(model, encoded, here, tmp_path, precision)
        fresh = {place.name for place in places} - known
        assert fresh or kind in ("precision", "half"), (
            f"{number}: the store from before a change of the {kind} answered"
        )
        known |= fresh
        if kind in ("weight", "token", "padding"):
            batch = encoded.collate(rows)
            expected = model(**batch).detach() * batch["attention_mask"][..., None]
            assert torch.equal(store.columns["output"].rows(rows), expected), number
    assert len(known) == 1 + changes


def _opened(model, encoded, keeping, folder, precision="fp32"):
    frozen = Frozen(model, [whole(model)], keeping=keeping, precision=precision)
    return frozen.store(0, encoded), list(folder.iterdir())


def test_the_key_of_examples_is_their_content_and_not_the_object():
    one, other = texts(), texts()
    assert content_key(one) == content_key(other)
    assert one.offsets.sum() > 0, "computed fields are no content"
    assert content_key(one) == content_key(other)
    assert content_key(one) != content_key(texts(seed=1))
    assert content_key(one) != content_key(replace(one, pad_id=1))
