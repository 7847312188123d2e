"""A copy of a module tree that shares its tensors: what surgery is done on, so that the original keeps its structure."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def same_tensors(model: M) -> M:
    """The model with new modules and the same parameters and buffers; surgery on the copy leaves the original as it was."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
