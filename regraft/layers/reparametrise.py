"""Weights as functions of others: length and direction apart, or divided by the largest singular value.

What trains is under `parametrizations` of a layer; `folded` gives the plain layers back, with the weights they compute with.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from regraft.core.seeding import generator
from regraft.layers.sharing import M, same_tensors

START = 30  # power iterations before the first step


class Spectral(nn.Module):
    """W / sigma(W), with sigma, the largest singular value, as u^T W v of vectors that power iteration moves.

    Miyato et al., 2018, arXiv:1802.05957, eq. 8 and algorithm 1. torch's own moves u and v in every forward pass; here `iterate`
    does, once after a step, so that a forward pass is a function of its input, whatever slices or repeats it.

    Args:
        weight: (out, ...) of a layer.
        seeds: decide the first u and v.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, *, seeds: tuple[int, ...] = (0,)) -> None:
        super().__init__()
        random, matrix = generator(*seeds), weight.detach().flatten(1)
        for name, side in (("u", matrix.shape[0]), ("v", matrix.shape[1])):
            vector = torch.randn(side, generator=random).to(matrix)
            self.register_buffer(name, nn.functional.normalize(vector, dim=0))
        self.iterate(weight, count=START)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with largest singular value 1, as far as u and v have come."""
        return weight / torch.dot(self.u.clone(), torch.mv(weight.flatten(1), self.v.clone()))

    @torch.no_grad()
    def iterate(self, weight: Tensor, *, count: int = 1) -> None:
        """Move u and v towards the first singular vectors of a weight, in place."""
        matrix = weight.detach().flatten(1)
        for _ in range(count):
            self.v.copy_(nn.functional.normalize(torch.mv(matrix.t(), self.u), dim=0, eps=1e-12))
            self.u.copy_(nn.functional.normalize(torch.mv(matrix, self.v), dim=0, eps=1e-12))


def spectral(model: M, names: Iterable[str], *, seed: int = 0) -> M:
    """The model with the named layers' weights divided by their largest singular value; the given one is left as it is."""
    made = same_tensors(model)
    for position, name in enumerate(names):
        layer = made.get_submodule(name)
        assert isinstance(layer.weight, Tensor)
        parametrize.register_parametrization(
            layer, "weight", Spectral(layer.weight, seeds=(seed, position)), unsafe=True
        )
    return made


def power_iterations(model: nn.Module, count: int) -> None:
    """Move u and v of every layer that `spectral` changed, and that trains, by `count` iterations on the weight it has now."""
    for module in model.modules():
        if not isinstance(module, parametrize.ParametrizationList):
            continue
        norm, weight = next(iter(module.children())), module.original
        if isinstance(norm, Spectral) and isinstance(weight, nn.Parameter) and weight.requires_grad:
            norm.iterate(weight, count=count)


def weight_normed(model: M, names: Iterable[str]) -> M:
    """The model with the named layers' weights as g v / |v|, a length g for each output; the given one is left as it is.

    Salimans and Kingma, 2016, arXiv:1602.07868, eq. 2; g starts at |w| and v at w, so the function is the same at first.
    """
    made = same_tensors(model)
    for name in names:
        weight_norm(made.get_submodule(name))
    return made


def parametrised(model: nn.Module) -> dict[str, nn.Module]:
    """Layers whose weight is a function of others, by name."""
    return {name: module for name, module in model.named_modules() if parametrize.is_parametrized(module, "weight")}


def folded(model: M) -> M:
    """The model with plain weights under their own names, equal to those it computes with; itself where all are plain."""
    if not parametrised(model):
        return model
    made = same_tensors(model)
    for layer in parametrised(made).values():
        weight = nn.Parameter(layer.weight.detach().clone())  # type: ignore[union-attr]
        layer.__class__ = type(layer).__bases__[
            0
        ]  # not remove_parametrizations: copies share the class that it takes apart
        del layer.parametrizations
        layer.weight = weight
    return made


def original_names(model: nn.Module, names: Iterable[str]) -> frozenset[str]:
    """Names of parameters before weights became functions -> the names of what trains in their place."""
    inside = {f"{name}.weight": name for name in parametrised(model)}
    found: set[str] = set()
    for name in names:
        layer = inside.get(name)
        if layer is None:
            found.add(name)
        else:
            prefix = f"{layer}.parametrizations.weight."
            found |= {own for own, _ in model.named_parameters() if own.startswith(prefix)}
    return frozenset(found)
