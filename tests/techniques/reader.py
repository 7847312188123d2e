"""A tiny BERT as a toy for the contract: rows of numbers are read as texts."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Words(nn.Module):
    """Rows of numbers (N, L) as word ids below 50."""

    def forward(self, x: Tensor) -> Tensor:
        return ((x.clamp(-4.9, 4.9) + 5) * 5).long()


class Body(nn.Module):
    """The mean of what a tiny BERT says of each word, (N, 8)."""

    def __init__(self, dropout: float) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        config = BertConfig(
            vocab_size=50, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=16, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        )  # fmt: skip
        self.bert = BertModel(config, add_pooling_layer=False)
        nn.init.normal_(self.bert.embeddings.word_embeddings.weight)

    def forward(self, ids: Tensor) -> Tensor:
        return self.bert(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.mean(1)


class Reader(nn.Module):
    """Reads rows of 8 columns as texts of 8 words; its parts run one after another. The same weights at each call."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.words, self.body, self.head = Words(), Body(dropout), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.words(x)))
