"""The likelihood of texts: against transformers' own loss, by hand, and token by token whatever the slices."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from regraft.config.parse import parse_one
from regraft.core import Clock
from regraft.core.values import mean, split
from regraft.errors import ConfigError
from regraft.losses.criterion import objective_of, question_of
from regraft.losses.generative import likelihood, next_token_losses

HERE = Clock(0, 1)


def batch_of(*lengths, vocabulary=11, seed=0):
    draw = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return {
        "input_ids": torch.randint(vocabulary, (len(lengths), longest), generator=draw) * mask,
        "attention_mask": mask,
    }


class Table(nn.Module):
    """Logits of the next token that depend on the last one only."""

    inputs = ("input_ids", "attention_mask")

    def __init__(self, vocabulary=11):
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        self.logits = nn.Parameter(torch.randn(vocabulary, vocabulary, generator=draw))

    def forward(self, input_ids, attention_mask):
        return self.logits[input_ids]


def test_it_is_the_log_probability_of_each_next_token_by_hand():
    model, batch = Table(), batch_of(4, 2, 1)
    log_p = model.logits.detach().log_softmax(-1)
    wanted, tokens = 0.0, 0
    for ids, length in zip(batch["input_ids"].tolist(), (4, 2, 1), strict=True):
        for one, following in pairwise(ids[:length]):
            wanted -= log_p[one, following].item()
            tokens += 1
    loss = likelihood(model, batch, HERE)
    assert tokens == 4
    assert float(loss.weight) == tokens
    assert loss.value.item() == pytest.approx(wanted / tokens, rel=1e-6)
    assert loss.terms["bits_per_token"].item() == pytest.approx(wanted / tokens / math.log(2), rel=1e-6)


@pytest.mark.inventory("nll-generative", by="data.main.task: language-model")
def test_it_equals_the_loss_of_transformers_and_the_models_own_log_probabilities(shared_data):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(shared_data("stories260k") / "hf", dtype=torch.float32).eval()
    batch = batch_of(12, 7, 3, vocabulary=512)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        output = model(**batch, labels=labels)
        each = next_token_losses(output.logits, batch["input_ids"], batch["attention_mask"])
    tokens = 11 + 6 + 2
    assert (each.sum() / tokens).item() == pytest.approx(output.loss.item(), rel=1e-6)
    one = {name: tensor[1:2, :7] for name, tensor in batch.items()}
    with torch.no_grad():
        log_p = model(**one).logits.log_softmax(-1)
    own = sum(log_p[0, at, one["input_ids"][0, at + 1]].item() for at in range(6))
    assert each[1].sum().item() == pytest.approx(-own, rel=1e-5)


def test_a_text_counts_for_its_tokens_whatever_slice_it_is_in():
    model, batch = Table(), batch_of(9, 2, 5, 3, 7, 1)
    whole = likelihood(model, batch, HERE)
    parts = mean([likelihood(model, part, HERE) for part in split(batch, 3)])
    torch.testing.assert_close(parts.value, whole.value, rtol=1e-6, atol=0)
    assert float(parts.weight) == float(whole.weight) == 8 + 1 + 4 + 2 + 6


def test_a_slice_without_a_token_to_predict_counts_for_nothing():
    model, batch = Table(), batch_of(5, 1, 1)
    whole = likelihood(model, batch, HERE)
    parts = [likelihood(model, part, HERE) for part in split(batch, 3)]
    assert [float(part.weight) for part in parts] == [4, 0, 0]
    torch.testing.assert_close(mean(parts).value, whole.value, rtol=1e-6, atol=0)
    assert mean(parts[1:]).value.item() == 0.0


def test_padding_changes_nothing_and_a_lone_token_loses_nothing():
    model = Table()
    short, long = batch_of(5), batch_of(5)
    long = {name: nn.functional.pad(tensor, (0, 4), value=0) for name, tensor in long.items()}
    assert likelihood(model, short, HERE).value.item() == pytest.approx(
        likelihood(model, long, HERE).value.item(), rel=1e-6
    )
    assert likelihood(model, batch_of(1, 1), HERE).value.item() == 0.0


def test_its_gradient_is_that_of_finite_differences():
    batch = batch_of(4, 2)
    logits = torch.randn(2, 4, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: next_token_losses(x, batch["input_ids"], batch["attention_mask"]).sum(), (logits,)
    )


@pytest.mark.inventory("loss-matched-to-model", by="train.loss")
def test_a_loss_of_labels_is_none_of_a_language_model_nor_the_other_way_round():
    with pytest.raises(ConfigError, match=r"Focal is for .* but the task is language-model; take NextToken"):
        objective_of(parse_one("Focal", "loss"), question_of("language-model", None))
    with pytest.raises(ConfigError, match="NextToken is for language-model, but the task is multiclass"):
        objective_of(parse_one("NextToken", "loss"), question_of("multiclass", None))
    for named in (None, parse_one("NextToken", "loss")):
        assert objective_of(named, question_of("language-model", None)) is likelihood
