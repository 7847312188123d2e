"""Penalties on weights, added to the loss: their size, their number, or how far a layer's rows are from orthogonal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from regraft.core import Batch, Clock, Loss, Objective, Recipe, Stage, Technique, each_stage, trainable


class Penalised(nn.Module):
    """`base` plus a penalty on the matrices and kernels that the stage trains; vectors (biases, gains) are left alone."""

    def __init__(self, base: Objective, spec: WeightPenalty, names: frozenset[str]) -> None:
        super().__init__()
        self.base, self.spec, self.names = base, spec, names

    def forward(self, model: nn.Module, batch: Batch, clock: Clock) -> Loss:
        """The base loss with the penalty added; the penalty is in the log under the technique's name."""
        loss = self.base(model, batch, clock)
        weights = [p for name, p in model.named_parameters() if name in self.names and p.ndim > 1]
        if not weights:
            return loss
        penalty = self.spec.weight * torch.stack([self.spec.of(weight.float()) for weight in weights]).sum()
        return Loss(loss.value + penalty, loss.weight, {**loss.terms, self.spec.term: penalty.detach()})


class WeightPenalty(Technique):
    """Adds `weight` times a function of every trained matrix to the loss."""

    wraps: ClassVar[frozenset[str]] = frozenset({"objective"})
    term: ClassVar[str] = ""  # its name in the log

    weight: float = Field(default=1e-4, ge=0)

    def of(self, matrix: Tensor) -> Tensor:
        """() penalty of a weight of at least two dimensions."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it penalises")

    def apply(self, recipe: Recipe) -> Recipe:
        """Add it to every stage."""
        return recipe if self.weight == 0 else each_stage(recipe, self._penalised)

    def _penalised(self, stage: Stage[Any]) -> Stage[Any]:
        names = frozenset(trainable(stage.model)) if stage.trains is None else stage.trains
        return replace(stage, objective=Penalised(stage.objective, self, names))


class L2Penalty(WeightPenalty):
    """Adds `weight` times the sum of squared weights to the loss, so the gradient of a weight w gains 2 weight w.

    Under Adam and its like this is not weight decay: the gain is divided by the gradient's own size, so weights with large
    gradients shrink less (Loshchilov and Hutter, 2019, arXiv:1711.05101, section 2). AdamW's `weight_decay` shrinks all alike.

    Use it when the penalty belongs to the loss that is compared, as in ridge regression.
    Not as the usual remedy against overfitting a pretrained network: that is the decay of AdamW.

    Attributes:
        weight: of the sum of squares.

    Example:
        ```yaml
        techniques:
          - L2Penalty: {weight: 1.0e-4}
        ```
    """

    term: ClassVar[str] = "l2"

    def of(self, matrix: Tensor) -> Tensor:
        """Sum of squares."""
        return matrix.square().sum()


class L1Penalty(WeightPenalty):
    """Adds `weight` times the sum of absolute weights to the loss, which drives weights that earn little towards zero.

    Tibshirani, 1996. Gradient steps leave them near zero, not at it: cut off what is below a threshold afterwards.

    Use it when few of many inputs or weights are expected to matter.
    Not with a pretrained network whose knowledge is spread over all weights.

    Attributes:
        weight: of the sum.

    Example:
        ```yaml
        techniques:
          - L1Penalty: {weight: 1.0e-5}
        ```
    """

    term: ClassVar[str] = "l1"

    def of(self, matrix: Tensor) -> Tensor:
        """Sum of absolute values."""
        return matrix.abs().sum()


class OrthogonalPenalty(WeightPenalty):
    """Adds `weight` times the squared distance of each layer's Gram matrix from the identity: `|W W^T - I|^2`.

    Brock et al., 2017, arXiv:1609.07093, eq. 3, with squares. The smaller side of a matrix is made orthonormal; a kernel is read
    as a matrix with a row for each output channel. Orthogonal layers keep the length of what passes through them.

    Use it when a deep or recurrent network is trained from scratch and gradients fade or grow.
    Not on pretrained layers, which are not orthogonal: the penalty would undo them.

    Attributes:
        weight: of the sum over the layers.

    Example:
        ```yaml
        techniques:
          - OrthogonalPenalty: {weight: 1.0e-3}
        ```
    """

    term: ClassVar[str] = "orthogonality"

    weight: float = Field(default=1e-3, ge=0)

    def of(self, matrix: Tensor) -> Tensor:
        """Squared Frobenius norm of the smaller Gram matrix minus the identity."""
        rows = matrix.flatten(1)
        rows = rows if rows.shape[0] <= rows.shape[1] else rows.T
        return (rows @ rows.T - torch.eye(len(rows), device=rows.device)).square().sum()
