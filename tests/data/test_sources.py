from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regraft.core.values import size
from regraft.data.augment import Augment
from regraft.data.images import EncodedImages
from regraft.data.sources import Episodes, Examples, Paired, Tensors, Views
from regraft.data.tables import EncodedTable
from regraft.data.text import EncodedText
from regraft.errors import ConfigError, DataError

MODEL = nn.Identity()


def texts(n: int = 100, seed: int = 0) -> EncodedText:
    random = np.random.default_rng(seed)
    lengths = random.integers(3, 40, n)
    ids = random.integers(1, 1000, lengths.sum()).astype(np.int32)
    return EncodedText(ids, lengths.astype(np.int64), np.zeros(n, bool), pad_id=0)


def images(n: int = 30) -> EncodedImages:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 3, 8, 6), dtype=np.uint8)
    return EncodedImages(pixels, np.full((n, 2), 8, np.int32), "pixel_values", (1 / 255,) * 3, (0.0,) * 3)


def table(n: int = 40) -> EncodedTable:
    return EncodedTable(np.arange(2 * n, dtype=np.float32).reshape(n, 2))


def drawn(source, start: int, stop: int) -> list[dict[str, Tensor]]:
    return list(islice(source.batches(MODEL, start), stop - start))


def same(a: list[dict[str, Tensor]], b: list[dict[str, Tensor]]) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True)
    )


def sources() -> Iterator[tuple[str, Callable]]:
    y = np.arange(100) % 7
    flips = Augment(flip=0.5, brightness=0.3)
    yield "text", lambda: Examples(texts(), y, batch_size=8, seed=1)
    yield "plain order", lambda: Examples(texts(), y, batch_size=8, seed=1, shuffle=False)
    yield "augmented", lambda: Examples(images(), None, batch_size=8, seed=1, augment=flips)
    yield "views", lambda: Examples(images(), None, batch_size=8, seed=1, augment=Views(flips, fixed=3))
    yield "tensors", lambda: Tensors({"x": torch.arange(20.0), "y": torch.arange(20)}, 6, 1)
    yield "tasks", lambda: Episodes(texts(), y, ways=3, shots=2, queries=4, tasks=2, seed=1)
    yield (
        "pair",
        lambda: Paired(
            Examples(texts(), y, batch_size=8, seed=1), Examples(texts(50, 3), None, batch_size=8, seed=2), "target"
        ),
    )


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in sources()])
def test_a_source_started_in_the_middle_yields_what_it_would_have_yielded(make):
    whole = drawn(make(), 0, 40)
    assert same(drawn(make(), 17, 40), whole[17:])
    assert make().state_dict() == {}
    assert all(len({len(v) for v in batch.values()}) == 1 for batch in whole)  # one first dimension


def test_batches_carry_the_target_and_the_input_of_their_ids():
    source = Examples(table(), np.arange(40) * 10, batch_size=16, seed=0)
    for batch in drawn(source, 0, 6):
        assert torch.equal(batch["y"], batch["id"] * 10)
        assert torch.equal(batch["x"][:, 0], batch["id"] * 2.0)
    assert source.inputs == {"x": "id"}
    assert source.examples.keys() == {"id"}


def test_targets_may_be_read_only_and_are_not_shared():
    targets = np.arange(40)
    source = Examples(table(), targets, batch_size=40, seed=0)
    targets[:] = -1
    targets.flags.writeable = False
    assert drawn(source, 0, 1)[0]["y"].min() == 0
    assert drawn(Examples(table(), targets, batch_size=40, seed=0), 0, 1)[0]["y"].max() == -1


def test_every_example_is_drawn_once_an_epoch_the_short_batch_included():
    source = Examples(texts(101), None, batch_size=8, seed=3)
    assert source.batches_per_epoch == 13
    for epoch in range(3):
        ids = torch.cat([batch["id"] for batch in drawn(source, 13 * epoch, 13 * epoch + 13)])
        assert ids.sort().values.tolist() == list(range(101))


@pytest.mark.inventory("shuffle-each-epoch", by="regraft train")
def test_every_epoch_has_an_order_of_its_own_that_seed_and_epoch_decide():
    def order(seed, epoch):
        source = Examples(table(), None, batch_size=8, seed=seed)
        per = source.batches_per_epoch
        return torch.cat([batch["id"] for batch in drawn(source, per * epoch, per * (epoch + 1))]).tolist()

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in range(3)]
    assert len({tuple(each) for each in orders}) == 6
    assert all(sorted(each) == list(range(40)) and each != sorted(each) for each in orders)
    assert orders == [order(seed, epoch) for seed in (0, 1) for epoch in range(3)]


def test_rows_restrict_a_source_and_ids_stay_those_of_the_split():
    rows = np.array([3, 30, 31, 99])
    source = Examples(texts(), np.arange(100), batch_size=3, seed=0, rows=rows)
    ids = torch.cat([batch["id"] for batch in drawn(source, 0, 2)])
    assert ids.sort().values.tolist() == rows.tolist()
    assert torch.equal(torch.cat([batch["y"] for batch in drawn(source, 0, 2)]), ids)


@pytest.mark.parametrize("prefix", ["target", "target_"])
def test_a_role_is_put_before_every_key(prefix):
    source = Examples(table(), np.arange(40), batch_size=4, seed=0, prefix=prefix)
    assert set(drawn(source, 0, 1)[0]) == {"target_id", "target_y", "target_x"}
    assert source.inputs == {"target_x": "target_id"}


def test_random_augmentation_offers_no_examples_and_differs_between_epochs():
    source = Examples(images(), None, batch_size=30, seed=0, augment=Augment(brightness=0.5))
    assert not source.examples
    looks = [batch["pixel_values"][batch["id"].argsort()] for batch in drawn(source, 0, 2)]
    assert not torch.equal(*looks)


def test_what_an_augmented_example_looks_like_does_not_depend_on_its_batch():
    augment = Augment(flip=0.5, translate=0.2, rotate=10, contrast=0.2)
    looks = []
    for batch_size in (5, 30):
        batches = drawn(Examples(images(), None, batch_size=batch_size, seed=0, augment=augment), 0, 30 // batch_size)
        order = torch.cat([b["id"] for b in batches]).argsort()
        looks.append(torch.cat([b["pixel_values"] for b in batches])[order])
    assert torch.equal(*looks)


def test_fixed_views_are_all_offered_and_the_first_is_the_example_itself():
    encoded = images()
    source = Examples(encoded, None, batch_size=10, seed=0, augment=Views(Augment(brightness=0.5), fixed=3))
    offered = source.examples["id"]
    seen: dict[int, Tensor] = {}
    counts: Counter[int] = Counter()
    for batch in drawn(source, 0, 18):  # six epochs of three batches
        for example, look in zip(batch["id"].tolist(), batch["pixel_values"], strict=True):
            assert torch.equal(seen.setdefault(example, look), look)
            counts[example] += 1
    assert sorted(counts) == list(range(90))
    assert set(counts.values()) == {2}
    plain = encoded.collate(np.arange(30))["pixel_values"]
    assert all(torch.equal(seen[3 * row], plain[row]) for row in range(30))
    assert not torch.equal(seen[1], seen[2])
    rows = np.random.default_rng(0).permutation(90)
    shown = offered.collate(rows)["pixel_values"]
    assert len(offered) == len(offered.lengths) == 90
    assert all(torch.equal(seen[example], look) for example, look in zip(rows.tolist(), shown, strict=True))


def test_only_images_can_be_augmented_and_targets_must_match():
    with pytest.raises(ConfigError, match="only images can be augmented, got EncodedTable"):
        Examples(table(), None, batch_size=2, seed=0, augment=Augment(flip=0.5))
    with pytest.raises(ConfigError, match="got 40 examples and 39 targets"):
        Examples(table(), np.zeros(39), batch_size=2, seed=0)
    with pytest.raises(ConfigError, match="at least one example, got none"):
        Examples(table(), None, batch_size=2, seed=0, rows=np.arange(0))


@pytest.mark.parametrize("other", [3, 8, 40])
def test_a_pair_has_the_batch_size_of_the_first_whatever_the_second_has(other):
    first = Examples(table(), np.arange(40), batch_size=7, seed=0)
    second = Examples(table(), None, batch_size=other, seed=1)
    paired = Paired(first, second, "target")
    for batch, own in zip(drawn(paired, 0, 12), drawn(first, 0, 12), strict=True):
        assert torch.equal(batch["id"], own["id"])
        assert size(batch) == len(batch["target_x"]) == len(own["id"])
        assert torch.equal(batch["target_x"][:, 0], batch["target_id"] * 2.0)
    assert paired.inputs == {"x": "id", "target_x": "target_id"}


def test_a_pair_hands_state_to_those_that_have_some():
    @dataclass
    class Remembering(Tensors):
        def __init__(self) -> None:
            super().__init__({"x": torch.zeros(4)}, 2)
            self.memory = 0

        def state_dict(self):
            return {"memory": self.memory}

        def load_state_dict(self, state, /):
            self.memory = state["memory"]

    one, two = Remembering(), Remembering()
    one.memory = 5
    plain = Tensors({"x": torch.zeros(4)}, 2)
    state = Paired(plain, one, "target").state_dict()
    assert state == {"second": {"memory": 5}}
    Paired(plain, two, "target").load_state_dict(state)
    assert two.memory == 5


def test_tasks_renumber_classes_and_never_share_an_example():
    labels = np.arange(100) % 7
    labels[:5] = -1
    source = Episodes(texts(), labels, ways=4, shots=2, queries=3, tasks=5, seed=0)
    maps = set()
    for batch in drawn(source, 0, 10):
        assert batch["support_y"].shape == (5, 8)
        assert batch["query_y"].shape == (5, 12)
        assert batch["support_input_ids"].shape[:2] == (5, 8)
        assert batch["query_attention_mask"].shape[:2] == (5, 12)
        for task in range(5):
            ids = torch.cat([batch["support_id"][task], batch["query_id"][task]])
            numbers = torch.cat([batch["support_y"][task], batch["query_y"][task]])
            assert len(ids.unique()) == 20
            pairs = {(int(labels[i]), int(n)) for i, n in zip(ids.tolist(), numbers.tolist(), strict=True)}
            assert sorted(n for _, n in pairs) == [0, 1, 2, 3]  # one class each
            assert -1 not in {label for label, _ in pairs}
            maps.add(frozenset(pairs))
    assert len(maps) > 30


def test_a_task_holds_the_tokens_of_its_examples():
    encoded = texts()
    batch = drawn(Episodes(encoded, np.arange(100) % 7, ways=2, shots=1, queries=1, tasks=2, seed=0), 0, 1)[0]
    for half in ("support", "query"):
        for row, ids, mask in zip(
            batch[f"{half}_id"].flatten().tolist(),
            batch[f"{half}_input_ids"].flatten(0, 1),
            batch[f"{half}_attention_mask"].flatten(0, 1),
            strict=True,
        ):
            assert torch.equal(ids[mask.bool()], encoded.collate(np.array([row]))["input_ids"][0])


def test_tasks_that_the_data_cannot_fill_are_refused():
    with pytest.raises(DataError, match=r"8-way tasks need 8 classes with at least 3 examples .* got 7; lower ways"):
        Episodes(texts(), np.arange(100) % 7, ways=8, shots=1, queries=2, tasks=1, seed=0)
    with pytest.raises(ConfigError, match="one class id per example, got float64"):
        Episodes(texts(), np.zeros(100), ways=2, shots=1, queries=1, tasks=1, seed=0)


def test_tensors_share_their_first_dimension():
    with pytest.raises(ConfigError, match=r"must share their first dimension, got \[3, 4\]"):
        Tensors({"x": torch.zeros(4), "y": torch.zeros(3)}, 2)
    assert Tensors({"x": torch.zeros(4), "target_x": torch.zeros(4), "y": torch.zeros(4)}, 2).inputs == {
        "x": "id",
        "target_x": "id",
    }
