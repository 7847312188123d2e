"""Losses of numbers: how far off, or in which order."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from regraft.losses.criterion import EachExample, Question, WholeBatch


class _OfErrors(EachExample):
    """A function of `f - y`; of several targets the mean over them."""

    tasks: ClassVar[frozenset[str]] = frozenset({"regression"})

    def values(self, outputs: Tensor, target: Tensor, question: Question) -> Tensor:
        """The mean over the targets."""
        return self.task_values(outputs, target, question).mean(-1)

    def task_values(self, outputs: Tensor, target: Tensor, question: Question) -> Tensor:
        """That of each target."""
        return self.of(outputs.reshape(len(target), -1) - target.reshape(len(target), -1))

    def of(self, error: Tensor) -> Tensor:
        """The loss of errors of any shape."""
        raise NotImplementedError(f"{type(self).__name__} does not say what an error costs")


class MSE(_OfErrors):
    """Squared error, in units of the training targets' variance; its best constant is the mean."""

    def of(self, error: Tensor) -> Tensor:
        """`(f - y)^2`."""
        return error.square()


class MAE(_OfErrors):
    """Absolute error, in units of the training targets' standard deviation.

    Its best constant is the median, which outliers hardly move.
    """

    def of(self, error: Tensor) -> Tensor:
        """`|f - y|`."""
        return error.abs()


class Huber(_OfErrors):
    """Half the squared error near the target and a straight line from `delta` on: no example pulls harder than `delta`.

    Huber, 1964, Annals of Mathematical Statistics 35(1).

    Attributes:
        delta: where the line begins, in standard deviations of the training targets.
    """

    delta: float = Field(default=1.0, gt=0)

    def of(self, error: Tensor) -> Tensor:
        """`e^2 / 2` up to delta, `delta (|e| - delta / 2)` beyond."""
        return F.huber_loss(error, torch.zeros_like(error), delta=self.delta, reduction="none")


class PairwiseRank(WholeBatch):
    """The order of each two examples of a batch whose targets differ; the batch is the list that is ranked.

    `logistic` is RankNet (Burges et al., 2005, eq. 3), `hinge` wants the higher one ahead by `margin` (Herbrich et al., 2000).
    The outputs are scores without a unit: judge them by Spearman's correlation, not by their error.

    Attributes:
        form: of the loss of a pair.
        margin: of the hinge.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"regression"})
    one_target: ClassVar[bool] = True

    form: Literal["logistic", "hinge"] = "logistic"
    margin: float = Field(default=1.0, gt=0)

    def value(self, outputs: Tensor, target: Tensor, question: Question) -> Tensor:
        """Mean over the pairs; 0 where all targets are equal."""
        score = outputs.squeeze(-1)
        ahead = score[:, None] - score[None, :]
        above = (target[:, None] > target[None, :]).float()
        each = F.softplus(-ahead) if self.form == "logistic" else (self.margin - ahead).clamp(min=0)
        return (each * above).sum() / above.sum().clamp(min=1)


class ListwiseRank(WholeBatch):
    """The order of all examples of a batch at once; the batch is the list that is ranked.

    `listnet` is the cross-entropy between the softmax of the targets and that of the scores (Cao et al., 2007, with
    top one), `listmle` the negative log-likelihood of the true order under Plackett-Luce (Xia et al., 2008). The outputs
    are scores without a unit.

    Attributes:
        form: of the loss of a list.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"regression"})
    one_target: ClassVar[bool] = True

    form: Literal["listnet", "listmle"] = "listmle"

    def value(self, outputs: Tensor, target: Tensor, question: Question) -> Tensor:
        """Over the number of examples."""
        score = outputs.squeeze(-1)
        if self.form == "listnet":
            return -(target.softmax(0) * score.log_softmax(0)).sum()
        ordered = score[target.argsort(descending=True, stable=True)]
        return (ordered.flip(0).logcumsumexp(0).flip(0) - ordered).mean()
