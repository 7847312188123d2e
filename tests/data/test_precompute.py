from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regraft.data.augment import Augment
from regraft.data.images import EncodedImages
from regraft.data.precompute import Precompute
from regraft.data.sources import Episodes, Examples, Paired, Tensors, Views
from regraft.data.store import Keeping
from regraft.data.text import EncodedText
from regraft.errors import Conflict
from regraft.models.frozen import Frozen
from regraft.models.tap import OUTPUT, whole


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


def kept(function: nn.Module, max_bytes: int = 1 << 20) -> Frozen:
    return Frozen(function, [whole(function)], keeping=Keeping(max_bytes=max_bytes))


def added(
    source, function: nn.Module, *, key: str, reads: str = "x", roles=("",), max_bytes: int = 1 << 20
) -> Precompute:
    return Precompute(source, kept(function, max_bytes), reads=reads, writes={OUTPUT: key}, roles=roles)


def test_each_example_is_computed_once_and_is_bit_equal_to_the_function():
    function = Counting()
    source = added(points(), function, key="teacher_logits")
    for batch in islice(source.batches(nn.Identity()), 30):
        assert torch.equal(batch["teacher_logits"], function.linear(batch["x"]))
    assert source.computed == 50


def test_token_results_are_padded_to_each_batch():
    torch.manual_seed(0)
    function, encoded = Tokens(), texts()
    source = added(Examples(encoded, None, batch_size=7, seed=0), function, key="hidden", reads="input_ids")
    for batch in islice(source.batches(nn.Identity()), 40):
        assert batch["hidden"].shape == (*batch["input_ids"].shape, 5)
        expected = function.embedding(batch["input_ids"]).cumsum(1) * batch["attention_mask"][..., None]
        assert torch.allclose(batch["hidden"], expected, atol=1e-5)
        assert not batch["hidden"][batch["attention_mask"] == 0].any()
    assert source.computed == 60


def test_the_function_runs_in_eval_mode_without_gradient_and_gets_its_modes_back():
    function = Tokens().train()
    function.embedding.eval()
    source = added(Examples(texts(), None, batch_size=60, seed=0), function, key="h", reads="input_ids")
    batch = next(source.batches(nn.Identity()))
    assert not batch["h"].requires_grad
    assert not batch["h"].is_inference()
    assert torch.allclose(batch["h"][:, 0], function.embedding.weight[batch["input_ids"][:, 0]])  # dropout was off
    assert [part.training for part in (function, function.dropout, function.embedding)] == [True, True, False]


def test_what_looks_new_each_time_is_computed_each_time():
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3, 4, 4), dtype=np.uint8)
    encoded = EncodedImages(pixels, np.full((10, 2), 4, np.int32), "x", (1.0,) * 3, (0.0,) * 3)
    augment, function = Augment(brightness=0.5), nn.Flatten()
    for look, computed in ((augment, 60), (Views(augment, fixed=2), 20)):
        source = added(Examples(encoded, None, batch_size=5, seed=0, augment=look), function, key="flat")
        for batch in islice(source.batches(nn.Identity()), 12):
            assert torch.equal(batch["flat"], batch["x"].flatten(1))
        assert source.computed == computed


def test_results_beyond_the_byte_limit_are_computed_again_and_stay_right():
    function = Counting()
    source = added(points(), function, key="out", max_bytes=10 * 3 * 4)
    for batch in islice(source.batches(nn.Identity()), 21):  # three epochs of 7 batches
        assert torch.allclose(batch["out"], function.linear(batch["x"]))
    assert source.frozen.stores(0)[0].kept == 10
    assert source.computed == 10 + 3 * 40


def test_token_results_beyond_the_byte_limit_are_padded_alike():
    function, encoded = Tokens(), texts()
    plain = Examples(encoded, None, batch_size=7, seed=0)
    limit = int(encoded.lengths[:30].sum()) * 5 * 4
    source = added(plain, function, key="hidden", reads="input_ids", max_bytes=limit)
    for batch in islice(source.batches(nn.Identity()), 20):
        expected = function.embedding(batch["input_ids"]).cumsum(1) * batch["attention_mask"][..., None]
        assert torch.allclose(batch["hidden"], expected, atol=1e-5)
    assert source.frozen.stores(0)[0].kept == 30


def test_a_function_that_changed_is_never_answered_from_the_store():
    function = Counting()
    source = added(points(), function, key="out")
    next(iter(source.batches(nn.Identity())))
    with torch.no_grad():
        function.linear.bias.add_(1.0)
    batch = next(iter(source.batches(nn.Identity())))
    assert torch.equal(batch["out"], function.linear(batch["x"]))


def test_both_roles_of_a_pair_are_computed_once_each_under_their_own_key():
    function = Counting()
    paired = Paired(points(50), points(20, batch_size=3), "target")
    source = added(paired, function, key="x", roles=("", "target_"))
    for batch, plain in zip(
        islice(source.batches(nn.Identity()), 40), islice(paired.batches(nn.Identity()), 40), strict=True
    ):
        for key in ("x", "target_x"):
            assert torch.allclose(batch[key], function.linear(plain[key]))
    assert source.computed == 70
    assert not source.examples, "what stands in place of x is no longer what the examples are"


def test_tasks_are_precomputed_per_example_with_their_two_leading_dimensions():
    function = Tokens()
    tasks = Episodes(texts(), np.arange(60) % 5, ways=3, shots=2, queries=2, tasks=4, seed=0)
    source = added(tasks, function, key="h", reads="input_ids", roles=("support_", "query_"))
    batch = next(islice(source.batches(nn.Identity()), 30, None))
    expected = function.eval()(batch["query_input_ids"].flatten(0, 1), batch["query_attention_mask"].flatten(0, 1))
    real = batch["query_attention_mask"].bool()
    assert batch["query_h"].shape == (*batch["query_input_ids"].shape, 5)
    assert torch.allclose(batch["query_h"][real], expected.unflatten(0, (4, 6))[real], atol=1e-5)
    assert source.computed == 60, "both halves are drawn from the same examples"


def test_what_the_source_lacks_and_what_gives_no_row_per_example_is_refused():
    with pytest.raises(Conflict, match=r"reads \['z'\], but the source yields \['x'\]"):
        added(points(), Counting(), key="b", reads="z")
    reducing = added(points(), nn.Flatten(0), key="c")
    with pytest.raises(ValueError, match=r"a row for each of 2 examples, got \(4,\)"):
        next(reducing.batches(nn.Identity()))


def test_state_is_that_of_the_inner_source():
    class Remembering(Tensors):
        memory = 1

        def state_dict(self):
            return {"memory": self.memory}

        def load_state_dict(self, state, /):
            self.memory = state["memory"]

    inner = Remembering({"x": torch.zeros(4, 2)}, 2)
    source = added(inner, Counting(), key="a")
    assert source.state_dict() == {"memory": 1}
    source.load_state_dict({"memory": 9})
    assert inner.memory == 9
