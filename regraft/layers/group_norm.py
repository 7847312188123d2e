"""Batch normalisation exchanged for group normalisation, with the same gains and shifts: nothing depends on the batch any more.

Wu and He, 2018, arXiv:1803.08494, eq. 7: mean and variance of an example are taken over groups of its channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from regraft.layers.sharing import M, same_tensors

LEAST_CHANNELS = 4  # in a group: fewer say little about an example


class GroupedNorm(nn.GroupNorm):
    """Group normalisation in the place of a batch normalisation, whose parameters and names it takes over.

    The running statistics stay as buffers that nothing reads, so that the state dict is that of the plain network, which can
    then be loaded and converted again.
    """

    def __init__(self, norm: _BatchNorm, groups: int) -> None:
        super().__init__(groups, norm.num_features, eps=norm.eps, affine=False)
        self.affine, self.weight, self.bias = norm.affine, norm.weight, norm.bias
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.training = norm.training


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """Which batch normalisations were exchanged: enough to do it again, as plain JSON values."""

    groups: Mapping[str, int]  # name of the layer -> its number of groups

    def to_json(self) -> dict[str, Any]:
        """`{"kind": "group_norm", "groups": {name: number}}`."""
        return {"kind": "group_norm", "groups": dict(self.groups)}

    @staticmethod
    def from_json(description: Mapping[str, Any]) -> Grouping:
        """The inverse of `to_json`."""
        return Grouping(groups=description["groups"])


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch normalisations of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def groups_for(channels: int, most: int) -> int:
    """The largest number of equal groups of `channels` that is at most `most` and leaves at least 4 channels in each."""
    limit = max(1, min(most, channels // LEAST_CHANNELS))
    return next(groups for groups in range(limit, 0, -1) if channels % groups == 0)


def to_group_norm(model: M, grouping: Grouping) -> M:
    """The model with the named batch normalisations exchanged; the given one is left as it is and shares its tensors."""
    made = same_tensors(model)
    for name, groups in grouping.groups.items():
        parent, _, child = name.rpartition(".")
        norm = made.get_submodule(name)
        assert isinstance(norm, _BatchNorm)
        setattr(made.get_submodule(parent), child, GroupedNorm(norm, groups))
    return made


def describe(model: nn.Module) -> Grouping | None:
    """What was exchanged by `to_group_norm`, or None."""
    found = {name: module.num_groups for name, module in model.named_modules() if isinstance(module, GroupedNorm)}
    return Grouping(groups=found) if found else None


def added_parameters(model: nn.Module) -> frozenset[str]:
    """None: the parameters are those of the plain network."""
    return frozenset()
