"""Likelihood of what a generative model was shown: of a text, token by token."""

from __future__ import annotations

import math
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from regraft.core import Batch, Clock, Loss, Objective, forward
from regraft.losses.criterion import Criterion, Question

IDS, MASK = "input_ids", "attention_mask"


def next_token_losses(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """(N, L - 1) negative log-likelihoods in nats of tokens 1, 2, ... given those before them; 0 where there is no token.

    Args:
        logits: (N, L, V); those at a place are of the token after it.
        ids: (N, L) tokens.
        mask: (N, L) 1 where a token is, 0 where the text is padded.
    """
    each = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
    return each * (mask[:, 1:] * mask[:, :-1])


def likelihood(model: nn.Module, batch: Batch, clock: Clock) -> Loss:
    """Mean negative log-likelihood in nats of the next token, over the tokens of the batch; `bits_per_token` in the log."""
    mask = batch[MASK]
    each = next_token_losses(forward(model, batch).float(), batch[IDS], mask)
    count = (mask[:, 1:] * mask[:, :-1]).sum()
    value = each.sum() / count.clamp(min=1)
    return Loss(value, count, {"bits_per_token": value.detach() / math.log(2)})


class NextToken(Criterion):
    """Negative log-likelihood of each token given those before it, in nats; the mean over the tokens of the batch.

    Bengio et al., 2003, Journal of Machine Learning Research 3, eq. 1. Long texts count for more than short ones, as each token
    counts the same. The first token of a text is given, not predicted. The loss of a language model, and the usual one for it.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"language-model"})

    def _objective(self, question: Question) -> Objective:
        return likelihood
