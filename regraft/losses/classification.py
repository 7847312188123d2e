"""Losses of classes and labels."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from regraft.errors import ConfigError
from regraft.losses.criterion import CLASSES, EachExample, Question, WholeBatch

ALL = CLASSES | {"multilabel"}


class _Weighted(EachExample):
    """A loss whose classes may count differently."""

    class_weights: Literal["balanced"] | tuple[float, ...] | None = None

    def weights(self, target: Tensor, question: Question) -> Tensor:
        """That of the example's class; of labels, 1."""
        known = super().weights(target, question)
        if question.task == "multilabel" or self.class_weights is None:
            return known
        return known * self._of_classes(question).to(target.device)[target.clamp(min=0)]

    def _of_labels(self, target: Tensor, question: Question) -> Tensor | None:
        """(N, C) weights of each label of multi-label data."""
        if self.class_weights is None:
            return None
        return torch.where(target > 0.5, self._of_classes(question).to(target.device), 1.0)

    def _of_classes(self, question: Question) -> Tensor:
        """(C,): given, or those under which all classes count the same, N / (C n_c) as in scikit-learn."""
        counts = question.counts
        if self.class_weights == "balanced":
            if counts is None:
                raise ConfigError("train.loss.class_weights: 'balanced' needs training labels, and this stage has none")
            return counts.sum() / (len(counts) * counts.clamp(min=1))
        given = torch.tensor(self.class_weights)
        if counts is not None and len(given) != len(counts):
            raise ConfigError(
                f"train.loss.class_weights: needs a number for each of {len(counts)} classes, got {len(given)}"
            )
        return given


class CrossEntropy(_Weighted):
    """Cross-entropy in nats; of labels the mean of their binary ones.

    With `label_smoothing` the target is `1 - smoothing` for the class and the rest spread over all of them (Szegedy et al., 2016,
    arXiv:1512.00567, section 7), which lowers the confidence of the model; of labels 0 and 1 become smoothing / 2 and 1 minus it.

    Attributes:
        label_smoothing: how much of the target is spread.
        class_weights: a weight for each class, in the order of the classes; `balanced` gives all classes the same say.
    """

    tasks: ClassVar[frozenset[str]] = ALL

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    def values(self, outputs: Tensor, target: Tensor, question: Question) -> Tensor:
        """-sum_c q_c log p_c, with q the smoothed target."""
        if question.task == "multilabel":
            return self.task_values(outputs, target, question).mean(-1)
        log_p = outputs.log_softmax(-1)
        right = log_p.gather(1, target.clamp(min=0)[:, None]).squeeze(1)
        return -(1 - self.label_smoothing) * right - self.label_smoothing * log_p.mean(-1)

    def task_values(self, outputs: Tensor, target: Tensor, question: Question) -> Tensor:
        """The binary cross-entropy of each label."""
        soft = target * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        weight = self._of_labels(target, question)
        return F.binary_cross_entropy_with_logits(outputs, soft, weight=weight, reduction="none")


class Focal(_Weighted):
    """Cross-entropy in which what is easy counts less: `(1 - p)^gamma (-log p)`. Lin et al., 2017, arXiv:1708.02002, eq. 4.

    Attributes:
        gamma: how much less; 0 is cross-entropy.
        class_weights: a weight for each class, which the paper calls alpha.
    """

    tasks: ClassVar[frozenset[str]] = ALL

    gamma: float = Field(default=2.0, ge=0)

    def values(self, outputs: Tensor, target: Tensor, question: Question) -> Tensor:
        """Of labels the mean over them."""
        if question.task == "multilabel":
            return self.task_values(outputs, target, question).mean(-1)
        log_p = outputs.log_softmax(-1).gather(1, target.clamp(min=0)[:, None]).squeeze(1)
        return -log_p * (1 - log_p.exp()).clamp(min=1e-12) ** self.gamma

    def task_values(self, outputs: Tensor, target: Tensor, question: Question) -> Tensor:
        """That of each label."""
        signed = torch.where(target > 0.5, outputs, -outputs)
        each = -F.logsigmoid(signed) * torch.sigmoid(-signed) ** self.gamma
        weight = self._of_labels(target, question)
        return each if weight is None else each * weight


class _Overlap(WholeBatch):
    """How much what is said and what is true overlap in a batch, class by class."""

    tasks: ClassVar[frozenset[str]] = ALL

    smooth: float = Field(default=1.0, gt=0)

    def value(self, outputs: Tensor, target: Tensor, question: Question) -> Tensor:
        """1 minus the mean overlap of the classes that the batch holds, all of them if it holds none."""
        if question.task == "multilabel":
            said, true = outputs.sigmoid(), target.float()
        else:
            said, true = outputs.softmax(-1), F.one_hot(target, outputs.shape[1]).float()
        present = (true.sum(0) > 0).float()
        present = torch.where(present.sum() > 0, present, torch.ones_like(present))
        return 1 - (self.overlap(said, true) * present).sum() / present.sum()

    def overlap(self, said: Tensor, true: Tensor) -> Tensor:
        """(C,) in [0, 1] of probabilities and targets (N, C)."""
        raise NotImplementedError(f"{type(self).__name__} does not say what overlap is")


class Dice(_Overlap):
    """1 minus twice the overlap over the sum of what is said and what is true.

    Milletari et al., 2016, arXiv:1606.04797, section 3. It looks at each class as a set, so rare ones count as much as common
    ones; it wants batches that hold several examples of each.

    Attributes:
        smooth: added above and below, so that an empty class is finite.
    """

    def overlap(self, said: Tensor, true: Tensor) -> Tensor:
        """`(2 |A B| + smooth) / (|A| + |B| + smooth)`."""
        return (2 * (said * true).sum(0) + self.smooth) / (said.sum(0) + true.sum(0) + self.smooth)


class IoU(_Overlap):
    """1 minus the overlap over the union (Jaccard), which falls where `Dice` falls. Rahman and Wang, 2016.

    Attributes:
        smooth: added above and below, so that an empty class is finite.
    """

    def overlap(self, said: Tensor, true: Tensor) -> Tensor:
        """`(|A B| + smooth) / (|A| + |B| - |A B| + smooth)`."""
        both = (said * true).sum(0)
        return (both + self.smooth) / (said.sum(0) + true.sum(0) - both + self.smooth)
