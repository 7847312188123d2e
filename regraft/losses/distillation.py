"""What a student loses against its teacher's soft predictions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from regraft.losses.divergence import categorical_divergence


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) at temperature T of logits (N, C), in nats, mean over N.

    Hinton et al., 2015, arXiv:1503.02531, section 2; with the full KL divergence, whose gradient is that of their
    cross-entropy.
    """
    log_p, log_q = F.log_softmax(teacher / temperature, -1), F.log_softmax(student / temperature, -1)
    return temperature**2 * categorical_divergence(log_p, log_q).mean()
