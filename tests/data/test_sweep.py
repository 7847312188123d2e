"""A pass over all examples: the same bits from one thread and from several, and nothing of it left behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regraft.data.sweep import MOST_EXAMPLES, sharing_weights, sweep
from regraft.data.text import EncodedText
from regraft.phases.choose.features import model_outputs


class Words(nn.Module):
    """Sums embeddings, and keeps what its hook saw last: shared between threads it would mix up their batches."""

    inputs = ("input_ids", "attention_mask")

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.out = nn.Embedding(1000, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)
        self.threads: set[int] = set()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        self.threads.add(torch.get_num_threads())
        summed = (self.table(input_ids) * attention_mask[..., None]).sum(1)
        return self.out(self.norm(summed))


def texts(n: int) -> EncodedText:
    random = np.random.default_rng(0)
    lengths = random.integers(3, 40, n)
    ids = random.integers(1, 1000, lengths.sum()).astype(np.int32)
    return EncodedText(ids, lengths.astype(np.int64), np.zeros(n, bool), pad_id=0)


@pytest.fixture
def threads():
    """`threads(n)` sets the threads torch may use for the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_threads_change_no_bit_and_rows_keep_their_order(threads):
    torch.manual_seed(0)
    model, encoded = Words(), texts(300)
    threads(1)
    alone = model_outputs(model, encoded, precision="fp32")
    threads(3)
    together = model_outputs(model, encoded, precision="fp32")
    assert torch.equal(alone, together)
    assert torch.get_num_threads() == 3
    model.eval()
    for row in (0, 17, 299):
        expected = model(**encoded.collate(np.array([row])))
        torch.testing.assert_close(together[row : row + 1], expected.detach(), rtol=1e-5, atol=1e-6)


def test_the_model_is_left_as_it_was_and_what_comes_back_can_be_trained_on(threads):
    threads(2)
    model = Words().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    out = model_outputs(model, texts(100), precision="bf16")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not out.is_inference()
    (out.requires_grad_() * 2).sum().backward()


def test_copies_share_weights_and_nothing_else():
    model = Words()
    copy = sharing_weights(model)
    assert copy.table.weight is model.table.weight
    assert copy.norm.running_mean is model.norm.running_mean
    assert copy.norm is not model.norm
    copy.table.register_forward_hook(lambda *_: None)
    assert not model.table._forward_hooks


def test_progress_counts_every_row_once_and_an_error_in_a_thread_is_raised(threads):
    threads(2)
    counted: list[int] = []
    sweep(Words(), texts(100), lambda own, x: {"out": own(**x)}, precision="fp32", progress=counted.append)
    assert sum(counted) == 100
    assert max(counted) <= MOST_EXAMPLES

    def fails(own: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        sweep(Words(), texts(100), fails, precision="fp32")
    assert torch.get_num_threads() == 2
    with pytest.raises(ValueError, match="at least one"):
        sweep(Words(), texts(0), fails, precision="fp32")
