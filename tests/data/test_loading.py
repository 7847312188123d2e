from __future__ import annotations

import csv
import io
from itertools import pairwise

import numpy as np
import pytest

from regraft.data.loading import (
    BatchOrder,
    Plan,
    bucketed_batches,
    epoch_order,
    in_length_order,
    plain_batches,
    token_share,
)
from regraft.data.text import TextPreprocessor


def skewed(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(3, 0.7, n).astype(np.int64) + 1


def share_by_hand(lengths: np.ndarray, plan: Plan) -> float:
    real = padded = 0
    for k in range(len(plan)):
        batch = [int(lengths[row]) for row in plan.batch(k)]
        real += sum(batch)
        padded += max(batch) * len(batch)
    return real / padded


def test_an_epoch_order_is_a_permutation_that_changes_with_seed_and_epoch():
    orders = [epoch_order(1000, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all((np.sort(order) == np.arange(1000)).all() for order in orders)
    assert all((a != b).mean() > 0.9 for i, a in enumerate(orders) for b in orders[:i])
    assert (epoch_order(1000, 1, 1) == orders[3]).all()


@pytest.mark.parametrize(("n", "batch_size"), [(1, 4), (7, 7), (1001, 16), (5000, 32)])
def test_buckets_hold_each_example_once_and_cut_only_one_batch_short(n: int, batch_size: int):
    plan = bucketed_batches(skewed(n), batch_size, 3, 2)
    assert (np.sort(plan.order) == np.arange(n)).all()
    sizes = [len(plan.batch(k)) for k in range(len(plan))]
    assert len(plan) == -(-n // batch_size)
    assert sizes.count(batch_size) >= len(plan) - 1
    assert sum(sizes) == n


def test_the_token_share_agrees_with_padding_by_hand():
    lengths = skewed(777)
    for plan in (bucketed_batches(lengths, 32, 0, 0), plain_batches(epoch_order(777, 0, 0), 32)):
        assert token_share(lengths, plan) == pytest.approx(share_by_hand(lengths, plan), rel=1e-12)


def test_buckets_waste_less_than_a_plain_shuffle_and_still_mix_lengths_over_the_epoch():
    lengths = skewed(20_000)
    plan = bucketed_batches(lengths, 32, 0, 0)
    assert token_share(lengths, plan) >= 0.95
    assert token_share(lengths, plain_batches(epoch_order(20_000, 0, 0), 32)) < 0.6
    means = np.array([lengths[plan.batch(k)].mean() for k in range(len(plan))])
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.2  # no curriculum from short to long


def test_bucket_mates_change_from_epoch_to_epoch():
    lengths = skewed(5000)
    mates = []
    for epoch in (0, 1):
        plan = bucketed_batches(lengths, 16, 0, epoch)
        batches = (plan.batch(k).tolist() for k in range(len(plan)))
        mates.append({frozenset((a, b)) for batch in batches for a in batch for b in batch if a < b})
    assert len(mates[0] & mates[1]) / len(mates[0]) < 0.15  # only the rare longest ones can hardly avoid each other


def test_the_order_of_the_buckets_changes_from_epoch_to_epoch():
    lengths = np.repeat(np.arange(1, 101), 8)  # sorted and cut into eights, every batch has a length of its own
    plans = [bucketed_batches(lengths, 8, 0, epoch, real_share=1.0) for epoch in (0, 1)]
    sequences = [[int(lengths[plan.batch(k)[0]]) for k in range(100)] for plan in plans]
    assert sorted(sequences[0]) == sorted(sequences[1]) == list(range(1, 101))
    assert np.mean(np.array(sequences[0]) == np.array(sequences[1])) < 0.1


def test_a_batch_is_a_function_of_seed_and_step_whatever_was_drawn_before():
    lengths = skewed(500)
    one, two = (BatchOrder(500, 16, 4, lengths=lengths) for _ in range(2))
    forward = [one.batch_at(step).tolist() for step in range(100)]
    assert [two.batch_at(step).tolist() for step in reversed(range(100))] == forward[::-1]
    assert BatchOrder(500, 16, 5, lengths=lengths).batch_at(0).tolist() != forward[0]


def test_without_shuffle_rows_come_in_file_order_every_epoch():
    order = BatchOrder(10, 4, 0, shuffle=False)
    assert [order.batch_at(step).tolist() for step in range(4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [0, 1, 2, 3]]


def test_length_order_holds_each_row_once_within_the_token_limit_longest_first():
    lengths = skewed(3000)
    batches = list(in_length_order(lengths, max_tokens=2048, max_examples=64))
    assert (np.sort(np.concatenate(batches)) == np.arange(3000)).all()
    assert all(len(b) * lengths[b].max() <= 2048 and len(b) <= 64 for b in batches)
    assert all(lengths[a].min() >= lengths[b].max() for a, b in pairwise(batches))


def test_a_row_longer_than_the_token_limit_gets_a_batch_of_its_own():
    assert [b.tolist() for b in in_length_order(np.array([5, 99, 4]), max_tokens=10, max_examples=8)] == [[1], [0, 2]]


@pytest.mark.parametrize("name", ["banking77", "sst2", "ag_news"])
def test_at_least_95_percent_of_the_tokens_of_real_texts_are_real(name, shared_data, minilm):
    folder = shared_data(name)
    file, dialect, columns = {
        "banking77": ("train.csv", {}, ("text",)),
        "sst2": ("train.tsv", {"delimiter": "\t", "quoting": csv.QUOTE_NONE}, ("sentence",)),
        "ag_news": ("train.csv", {}, ("title", "description")),
    }[name]
    rows = list(csv.DictReader(io.StringIO((folder / file).read_text()), **dialect))
    preprocessor = TextPreprocessor.from_model(minilm, columns=columns)
    lengths = preprocessor.encode({c: [row[c] for row in rows] for c in columns}).lengths
    plans = [bucketed_batches(lengths, 32, seed=0, epoch=epoch) for epoch in range(3)]
    shuffled = token_share(lengths, plain_batches(epoch_order(len(lengths), 0, 0), 32))
    shares = [share_by_hand(lengths, plan) for plan in plans]
    print(
        f"{name}: {len(lengths)} texts, real tokens {min(shares):.3f} to {max(shares):.3f}, shuffled only {shuffled:.3f}"
    )
    assert min(shares) >= 0.95
    assert shuffled < 0.9


def test_the_largest_batch_can_come_first_in_the_first_epoch_and_nothing_else_changes():
    lengths = skewed(999)
    for epoch in (0, 1):
        usual = bucketed_batches(lengths, 32, 3, epoch)
        first = bucketed_batches(lengths, 32, 3, epoch, longest_first=True)
        ours, theirs = ([plan.batch(k).tolist() for k in range(len(plan))] for plan in (first, usual))
        tokens = [int(lengths[rows].max()) * len(rows) for rows in theirs]
        if epoch == 0:
            assert tokens[0] < max(tokens)
            largest = theirs.pop(int(np.argmax(tokens)))
            theirs = [largest, *theirs]
        assert ours == theirs
