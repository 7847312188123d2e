"""Dropout and its kin: entries, whole features, weights or whole blocks are left out at random while training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn
from torch.utils.hooks import RemovableHandle

from regraft.core import Hook, Loss, Recipe, Run, Stage, Technique, each_stage
from regraft.core.modes import eval_mode
from regraft.errors import Conflict
from regraft.layers.drop import DropBlock, DropFeatures, DropInput, drop_rates, shapes_of, weights_dropped
from regraft.layers.sharing import same_tensors
from regraft.layers.stand_in import replace_forward, restore_forward
from regraft.models.blocks import blocks
from regraft.models.edit import edit_models, refuse_steady
from regraft.models.example import run_once
from regraft.models.parts import may_train, parts_of


class Dropout(Technique):
    """Sets entries of activations to zero at random in training: the dropout layers of the network get this rate.

    Srivastava et al., 2014, JMLR 15, section 4; what is kept is scaled by 1 / (1 - rate), so nothing changes in eval mode.
    BERT and its kin also read the rate of their attention weights from such a layer; ViT keeps that as a number, which stays. A
    network without dropout layers gets one in front of its head.

    Use it when the network is large for its data and validation gets worse while training still gets better; 0.1 for
    transformers, 0.5 in front of a head. Not with `train.steady: true`, which trains in eval mode, and is refused; not beside
    batch normalisation, whose statistics then differ between training and use (Li et al., 2019, arXiv:1801.05134).

    Attributes:
        rate: share of entries that is set to zero.
        where: the dropout layers that are there; in front of the head; or auto, the first if there are any, else the second.

    Example:
        ```yaml
        techniques:
          - Dropout: {rate: 0.2}
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"model", "hooks"})
    place: ClassVar[Literal["inner", "middle", "outer"]] = "inner"

    rate: float = Field(default=0.1, ge=0, lt=1)
    where: Literal["auto", "layers", "head"] = "auto"

    def apply(self, recipe: Recipe) -> Recipe:
        """Every model that is trained gets the rate."""
        edited = edit_models(recipe, self._edited)
        if self.where == "head" or self.rate == 0:
            return edited
        return each_stage(edited, lambda stage: replace(stage, hooks=(*stage.hooks, TellIdle())))

    def _edited(self, model: nn.Module, stage: Stage[Any]) -> nn.Module:
        refuse_steady(model, asked_by="Dropout", what="dropout")
        made = same_tensors(model)
        layers = [module for module in made.modules() if isinstance(module, nn.Dropout)]
        if self.where == "layers" and not layers:
            raise Conflict(
                f"Dropout: the {type(model).__name__} of stage {stage.name!r} has no dropout layer; set `where: head`"
            )
        if self.where != "head" and layers:
            for layer in layers:
                layer.p = self.rate
            return made
        made.get_submodule(head_of(made)).register_forward_pre_hook(DropInput(self.rate))
        return made


class TellIdle(Hook):
    """Says after the first step that every dropout layer is in a frozen module, where that is so."""

    def on_step(self, run: Run, loss: Loss) -> None:
        """Look at the mode of each layer."""
        layers = [module for module in run.stage.model.modules() if isinstance(module, nn.Dropout)]
        if run.clock.step == 1 and layers and not any(layer.training for layer in layers):
            run.note(
                f"Dropout drops nothing in stage {run.stage.name!r}: all dropout layers of the {type(run.stage.model).__name__} "
                "are in modules that do not train; set `where: head`"
            )


class SpatialDropout(Technique):
    """Sets whole feature maps to zero at random in training, after each block: a channel's points, or a feature's tokens.

    Tompson et al., 2015, arXiv:1411.4280, section 3.2. Neighbouring points of a map say nearly the same, so dropping single
    ones hides nothing. Takes maps (N, C, H, W) and tokens (N, L, D); what is kept is scaled by 1 / (1 - rate).

    Use it when a convolutional network trained from scratch overfits. Not on few channels, and not with `train.steady: true`.

    Attributes:
        rate: share of channels, or features, that is set to zero in each example.

    Example:
        ```yaml
        models: {main: {network: ConvNet}}
        techniques:
          - SpatialDropout: {rate: 0.1}
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"hooks"})

    rate: float = Field(default=0.1, ge=0, lt=1)

    def apply(self, recipe: Recipe) -> Recipe:
        """Blocks drop features in every stage."""
        return recipe if self.rate == 0 else each_stage(recipe, self._dropping)

    def _dropping(self, stage: Stage[Any]) -> Stage[Any]:
        refuse_steady(stage.model, asked_by="SpatialDropout", what="dropout")
        shapes = _shapes(stage, asked_by="SpatialDropout", composite=False)
        hooks = {name: DropFeatures(self.rate) for name, (_, given) in shapes.items() if len(given) >= 3}
        if not hooks:
            raise Conflict(
                f"SpatialDropout: no block of the {type(stage.model).__name__} in stage {stage.name!r} that trains hands on "
                "maps (N, C, H, W) or tokens (N, L, D); use Dropout"
            )
        return replace(stage, hooks=(*stage.hooks, DropOutputs(hooks)))


class DropPath(Technique):
    """Skips residual blocks at random in training, each example its own: the deeper a block, the more often.

    Stochastic depth: Huang et al., 2016, arXiv:1603.09382, eq. 2 and the linear rule of eq. 4, from rate / L for the lowest of L
    blocks to `rate` for the last. The change that a block makes is scaled by 1 / (1 - rate) where it is kept, so eval mode is the
    network as it is. Blocks that change the shape are never skipped. A step costs what it did: blocks are computed all the same.

    Use it when a deep residual network or vision transformer is trained or fully fine-tuned on little data; 0.1 to 0.2. Not on
    few blocks, and not where there is no residual connection around a block: skipping it is no small change there.

    Attributes:
        rate: of the last block.

    Example:
        ```yaml
        techniques:
          - DropPath: {rate: 0.1}
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"hooks"})

    rate: float = Field(default=0.1, ge=0, lt=1)

    def apply(self, recipe: Recipe) -> Recipe:
        """Blocks are skipped in every stage."""
        return recipe if self.rate == 0 else each_stage(recipe, self._dropping)

    def _dropping(self, stage: Stage[Any]) -> Stage[Any]:
        refuse_steady(stage.model, asked_by="DropPath", what="skipping blocks")
        names = _blocks(stage.model, composite=True)
        rates = dict(zip(names, drop_rates(len(names), self.rate), strict=True))
        shapes = _shapes(stage, asked_by="DropPath", composite=True)
        hooks = {name: DropBlock(rates[name]) for name, (taken, given) in shapes.items() if taken == given}
        if not hooks:
            raise Conflict(
                f"DropPath: no block of the {type(stage.model).__name__} in stage {stage.name!r} that trains hands on the shape "
                "it takes, so none can be skipped; use Dropout"
            )
        return replace(stage, hooks=(*stage.hooks, DropOutputs(hooks)))


class DropOutputs(Hook):
    """Has blocks drop of their outputs from the stage's start to its end; a block below a stored prefix is not there."""

    def __init__(self, hooks: Mapping[str, DropFeatures | DropBlock]) -> None:
        self.hooks = hooks  # by the name of the block
        self.handles: list[RemovableHandle] = []

    def on_start(self, run: Run) -> None:
        """Put the hooks on."""
        self._remove()
        modules = dict(run.stage.model.named_modules())
        found = {modules[name]: hook for name, hook in self.hooks.items() if name in modules}
        self.handles = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in found.items()]

    def on_end(self, run: Run) -> None:
        """Take them off."""
        self._remove()

    def _remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []


class DropConnect(Technique):
    """Sets entries of weights to zero at random in training, in the linear layers below the head.

    Wan et al., 2013, ICML 28(3), section 3. What is kept is scaled by 1 / (1 - rate), and one mask serves a slice of the batch,
    where the paper draws one for each example and corrects the output by sampling; eval mode is the network as it is.

    Use it when dropout helps and single weights, not activations, are what the network leans on. Not with `train.steady: true`.

    Attributes:
        rate: share of each weight that is set to zero.
        convolutions: also in convolutions.

    Example:
        ```yaml
        models: {main: {network: MLP}}
        techniques:
          - DropConnect: {rate: 0.2}
        ```
    """

    wraps: ClassVar[frozenset[str]] = frozenset({"hooks"})

    rate: float = Field(default=0.2, ge=0, lt=1)
    convolutions: bool = False

    def apply(self, recipe: Recipe) -> Recipe:
        """Add the hook to every stage."""
        return each_stage(recipe, self._dropping)

    def _dropping(self, stage: Stage[Any]) -> Stage[Any]:
        refuse_steady(stage.model, asked_by="DropConnect", what="dropping weights")
        trained = _trained_modules(stage)
        if not any(layer in trained for layer in self.layers(stage.model)):
            raise Conflict(
                f"DropConnect: the {type(stage.model).__name__} of stage {stage.name!r} has no linear layer below its head that "
                "trains; set `convolutions: true`, or use Dropout"
            )
        return replace(stage, hooks=(*stage.hooks, DropWeights(self)))

    def layers(self, model: nn.Module) -> list[nn.Module]:
        """Whose weights are dropped."""
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) if self.convolutions else (nn.Linear,)
        head = head_of(model)
        return [module for name, module in model.named_modules() if isinstance(module, kinds) and name != head]


class DropWeights(Hook):
    """Has layers drop their weights from the stage's start to its end."""

    def __init__(self, spec: DropConnect) -> None:
        self.spec = spec

    def on_start(self, run: Run) -> None:
        """Put stand-ins before the forward of each layer."""
        for layer in self.spec.layers(run.stage.model):
            replace_forward(layer, partial(weights_dropped, self.spec.rate))

    def on_end(self, run: Run) -> None:
        """Take them away."""
        for layer in self.spec.layers(run.stage.model):
            restore_forward(layer)


def head_of(model: nn.Module) -> str:
    """Name of the module that holds the head's weight."""
    return parts_of(model).head[0].rpartition(".")[0]


def _trained_modules(stage: Stage[Any]) -> set[nn.Module]:
    """Modules with a parameter that may train: all others are in eval mode, in which nothing is dropped."""
    named = may_train(stage)
    return {
        module
        for prefix, module in stage.model.named_modules()
        if any(f"{prefix}.{own}" in named if prefix else own in named for own, _ in module.named_parameters())
    }


def _blocks(model: nn.Module, *, composite: bool) -> list[str]:
    """Names of the blocks with parameters below the head, the lowest first; `composite` leaves out single layers."""
    head = head_of(model)
    return [
        block.name
        for block in blocks(model)
        if any(True for _ in block.module.parameters())
        and block.name != head
        and (not composite or _is_composite(block.module))
    ]


def _is_composite(block: nn.Module) -> bool:
    """Is this more than a single layer, or a single layer beside which a technique has put something?"""
    single = isinstance(block, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) or hasattr(block, "base_layer")
    return any(True for _ in block.children()) and not single


def _shapes(stage: Stage[Any], *, asked_by: str, composite: bool) -> dict[str, Any]:
    """Shapes that the blocks in which something trains take and hand on."""
    model, trained = stage.model, _trained_modules(stage)
    names = [name for name in _blocks(model, composite=composite) if model.get_submodule(name) in trained]
    with eval_mode(model):
        return shapes_of(model, names, partial(run_once, stage=stage, asked_by=asked_by, instead="use Dropout"))
