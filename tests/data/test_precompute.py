from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regraft.data.augment import Augment
from regraft.data.images import EncodedImages
from regraft.data.precompute import MemoryStore, Precompute, evaluating
from regraft.data.sources import Episodes, Examples, Paired, Tensors, Views
from regraft.data.text import EncodedText
from regraft.errors import Conflict


class Tokens(nn.Module):
    """A per-token function of ids and mask with a dropout that must be off."""

    inputs = ("input_ids", "attention_mask")

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 5)
        self.dropout = nn.Dropout(0.5)
        self.seen = 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        self.seen += len(input_ids)
        assert attention_mask.shape == input_ids.shape
        return self.dropout(self.embedding(input_ids)).cumsum(1)


class Counting(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(2, width)
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.linear(x)


def texts(n: int = 60) -> EncodedText:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 20, n)
    ids = random.integers(1, 1000, lengths.sum()).astype(np.int32)
    return EncodedText(ids, lengths.astype(np.int64), np.zeros(n, bool), pad_id=0)


def points(n: int = 50, batch_size: int = 8) -> Tensors:
    return Tensors(
        {"x": torch.randn(n, 2, generator=torch.Generator().manual_seed(0)), "y": torch.arange(n)}, batch_size
    )


def test_each_example_is_computed_once_and_is_bit_equal_to_its_first_result():
    function, first = Counting(), {}
    outputs = []
    function.register_forward_hook(lambda module, args, out: outputs.append((args[0].clone(), out.clone())))
    source = Precompute(points(), function, {"x": "teacher_logits"}, store=MemoryStore())
    for batch in islice(source.batches(nn.Identity()), 30):
        assert batch["teacher_logits"].dtype == torch.float32
        for i, row in zip(batch["id"].tolist(), batch["teacher_logits"], strict=True):
            assert torch.equal(first.setdefault(i, row), row)
    assert function.seen == source.computed == 50
    given = {tuple(x.tolist()): out for xs, outs in outputs for x, out in zip(xs, outs, strict=True)}
    inner = points().columns["x"]
    assert all(torch.equal(given[tuple(inner[i].tolist())], row) for i, row in first.items())


def test_token_results_are_kept_without_padding_and_padded_again_to_each_batch():
    torch.manual_seed(0)
    function, encoded = Tokens(), texts()
    store = MemoryStore()
    source = Precompute(
        Examples(encoded, None, batch_size=7, seed=0), function, {"input_ids": "hidden"}, store=store, ragged=True
    )
    for batch in islice(source.batches(nn.Identity()), 40):
        assert batch["hidden"].shape == (*batch["input_ids"].shape, 5)
        expected = function.embedding(batch["input_ids"]).cumsum(1) * batch["attention_mask"][..., None]
        assert torch.allclose(batch["hidden"], expected, atol=1e-5)
        assert not batch["hidden"][batch["attention_mask"] == 0].any()
    assert function.seen == 60
    assert store.num_bytes == encoded.lengths.sum() * 5 * 4


def test_the_function_runs_in_eval_mode_without_gradient_and_gets_its_modes_back():
    function = Tokens().train()
    function.embedding.eval()
    source = Precompute(
        Examples(texts(), None, batch_size=60, seed=0), function, {"input_ids": "h"}, store=MemoryStore(), ragged=True
    )
    batch = next(source.batches(nn.Identity()))
    assert not batch["h"].requires_grad
    assert torch.allclose(batch["h"][:, 0], function.embedding.weight[batch["input_ids"][:, 0]])  # dropout was off
    assert [part.training for part in (function, function.dropout, function.embedding)] == [True, True, False]


def test_modes_come_back_after_an_error():
    module = nn.Sequential(nn.Dropout(), nn.ReLU()).train()
    module[1].eval()

    def fail() -> None:
        with evaluating(module):
            assert not module[0].training
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [module.training, module[0].training, module[1].training] == [True, True, False]


def test_what_looks_new_each_time_is_computed_each_time():
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3, 4, 4), dtype=np.uint8)
    encoded = EncodedImages(pixels, np.full((10, 2), 4, np.int32), "x", (1.0,) * 3, (0.0,) * 3)
    augment, function = Augment(brightness=0.5), nn.Flatten()
    for look, computed in ((augment, 60), (Views(augment, fixed=2), 20)):
        source = Precompute(
            Examples(encoded, None, batch_size=5, seed=0, augment=look), function, {"x": "flat"}, store=MemoryStore()
        )
        for batch in islice(source.batches(nn.Identity()), 12):
            assert torch.equal(batch["flat"], batch["x"].flatten(1))
        assert source.computed == computed


def test_results_beyond_the_byte_limit_are_computed_again_and_stay_right():
    function, store = Counting(), MemoryStore(max_bytes=10 * 3 * 4)
    source = Precompute(points(), function, {"x": "out"}, store=store)
    for batch in islice(source.batches(nn.Identity()), 21):  # three epochs of 7 batches
        assert torch.allclose(batch["out"], function.linear(batch["x"]))
    assert len(store) == 10
    assert store.num_bytes <= store.max_bytes
    assert store.num_refused == 3 * 40
    assert source.computed == 50 + 2 * 40


def test_a_kept_row_does_not_keep_the_batch_it_was_computed_in():
    store = MemoryStore()
    store.claim("a")
    store.put("a", 0, torch.zeros(1000, 3)[0])
    kept = store.get("a", 0)
    assert kept is not None
    assert kept.untyped_storage().nbytes() == store.num_bytes == 12


def test_both_roles_of_a_pair_are_computed_once_each_under_their_own_key():
    function = Counting()
    paired = Paired(points(50), points(20, batch_size=3), "target")
    source = Precompute(paired, function, {"x": "x", "target_x": "target_x"}, store=MemoryStore())
    for batch, plain in zip(
        islice(source.batches(nn.Identity()), 40), islice(paired.batches(nn.Identity()), 40), strict=True
    ):
        for key in ("x", "target_x"):
            assert torch.allclose(batch[key], function.linear(plain[key]))
    assert function.seen == 70


def test_tasks_are_precomputed_per_example_with_their_two_leading_dimensions():
    function = Tokens()
    tasks = Episodes(texts(), np.arange(60) % 5, ways=3, shots=2, queries=2, tasks=4, seed=0)
    writes = {"support_input_ids": "support_h", "query_input_ids": "query_h"}
    source = Precompute(tasks, function, writes, store=MemoryStore(), ragged=True)
    batch = next(islice(source.batches(nn.Identity()), 30, None))
    expected = function.eval()(batch["query_input_ids"].flatten(0, 1), batch["query_attention_mask"].flatten(0, 1))
    real = batch["query_attention_mask"].bool()
    assert batch["query_h"].shape == (*batch["query_input_ids"].shape, 5)
    assert torch.allclose(batch["query_h"][real], expected.unflatten(0, (4, 6))[real], atol=1e-5)


def test_a_store_is_not_shared_and_what_the_source_lacks_is_refused():
    store = MemoryStore()
    Precompute(points(), Counting(), {"x": "a"}, store=store)
    with pytest.raises(Conflict, match="already keeps 'a' of another function"):
        Precompute(points(), Counting(), {"x": "a"}, store=store)
    with pytest.raises(Conflict, match=r"reads \['z'\], but the source yields \['x'\]"):
        Precompute(points(), Counting(), {"z": "b"}, store=store)
    reducing = Precompute(points(), nn.Flatten(0), {"x": "c"}, store=store)
    with pytest.raises(Conflict, match=r"a row per example, got \(16,\) for 8 examples"):
        next(reducing.batches(nn.Identity()))


def test_state_is_that_of_the_inner_source():
    class Remembering(Tensors):
        memory = 1

        def state_dict(self):
            return {"memory": self.memory}

        def load_state_dict(self, state, /):
            self.memory = state["memory"]

    inner = Remembering({"x": torch.zeros(4, 2)}, 2)
    source = Precompute(inner, Counting(), {"x": "a"}, store=MemoryStore())
    assert source.state_dict() == {"memory": 1}
    source.load_state_dict({"memory": 9})
    assert inner.memory == 9
