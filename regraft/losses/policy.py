"""Policy-gradient losses: what an action that was drawn and rewarded says about the policy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regraft.losses.divergence import categorical_divergence


def group_advantages(reward: Tensor, *, floor: float = 1e-4) -> Tensor:
    """Rewards (N, G) of G actions for each prompt, centred and scaled within the group, (N, G).

    Shao et al., 2024, arXiv:2402.03300, section 4.1.2; `floor` is added to the deviation, so that a group in which all
    actions earn the same has advantage 0.
    """
    return (reward - reward.mean(-1, keepdim=True)) / (reward.std(-1, keepdim=True) + floor)


def clipped_surrogate(log_p: Tensor, old_log_p: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """-min(r A, clamp(r, 1 - clip, 1 + clip) A) with r = p / old_p, elementwise in the shape of the arguments.

    Schulman et al., 2017, arXiv:1707.06347, eq. 7.
    """
    ratio = (log_p - old_log_p).exp()
    return -torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def policy_divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(policy || reference) of logits (N, C), in nats, (N,)."""
    return categorical_divergence(F.log_softmax(logits, -1), F.log_softmax(reference, -1))
