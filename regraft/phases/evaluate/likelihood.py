"""How well a language model foretells texts it has not seen: bits per token and perplexity, with intervals over the texts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from regraft.core import forward
from regraft.core.modes import eval_mode
from regraft.data.encoded import Encoded
from regraft.losses.generative import IDS, MASK, next_token_losses
from regraft.phases.evaluate.bootstrap import Statistics, resamples_for, with_intervals

BATCH_TOKENS = 4096  # that are run at once, padding included


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Judges a language model by the texts of a split."""

    encoded: Encoded
    split: str = "valid"

    def measure(self, model: nn.Module) -> dict[str, float]:
        """`score`: bits per token with a minus, so that higher is better; `loss`: nats per token."""
        bits, tokens = text_bits(model, self.encoded)
        per_token = float(bits.sum() / max(1, tokens.sum()))
        return {"score": -per_token, "loss": per_token * math.log(2)}


def text_bits(model: nn.Module, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
    """Bits (N,) of each text given its first token, in float64, and how many tokens (N,) int64 they are the sum of."""
    order = np.argsort(encoded.lengths, kind="stable")[::-1]
    bits, tokens = np.zeros(len(order)), np.zeros(len(order), np.int64)
    at = 0
    with eval_mode(model), torch.no_grad():
        while at < len(order):
            rows = order[at : at + max(1, BATCH_TOKENS // int(encoded.lengths[order[at]]))]
            batch = encoded.collate(rows)
            losses = next_token_losses(forward(model, batch).float(), batch[IDS], batch[MASK])
            bits[rows] = losses.double().sum(1).numpy() / math.log(2)
            tokens[rows] = np.maximum(encoded.lengths[rows] - 1, 0)
            at += len(rows)
    return bits, tokens


def likelihood_metrics(bits: np.ndarray, tokens: np.ndarray, *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """`{metric: {value, low, high}}` of `bits_per_token`, `perplexity` (2 to that power), `n` texts and their `tokens`."""

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        per_token = bits @ weights / np.maximum(tokens @ weights, 1)
        return {"bits_per_token": per_token, "perplexity": np.exp2(per_token)}

    found: list[Statistics] = [statistics]
    counts = {"n": len(bits), "tokens": int(tokens.sum()), "resamples": resamples_for(len(bits))}
    measured = with_intervals(found, len(bits), seed=seed)
    return measured | {name: {"value": count, "low": count, "high": count} for name, count in counts.items()}
